"""Multi-Token Attention: scores of neighbouring queries and keys are mixed by convolutions (arXiv 2504.00927).

Official code: https://github.com/facebookresearch/RAM (MIT), projects/mta/mta_transformer.py.

Differs from the official code in:
- on a map the convolutions run over the two dimensions of the keys' and of the queries' grid (`layout="grid"`, ours);
  the official one, over rows of tokens, is `layout="raster"`;
- `qkv` and `proj` are softmax attention's (`to_native` renames), and may have biases;
- convolutions over the grid are convolutions of queries, keys, values and results, which is the same: nothing of N x N
  is held unless heads are mixed. Weights are then dropped before the second convolution, not after it;
- kernels start as the identity wherever the keys are padded; the official start assumes `pad_key="both"`;
- the official second convolution writes into the softmax's result, so that its backward pass fails in float32.

Golden: tests/golden/mta_*.npz.
"""

from collections.abc import Callable, Mapping
from math import exp
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.catalog import BlockContext, Card
from visionattn.ops import attention
from visionattn.utils.arguments import check_choice, check_heads
from visionattn.utils.factory import FactoryKwargs

from ._common import WINDOWS, TokenMixer, convert_when_loading, join_projections, split_heads
from ._score_conv import beside, bias_rows, conv_keys, conv_tokens, kernel_sizes, put_block, zeros_before

__all__ = ["MultiTokenAttention"]

Rotation = Callable[[torch.Tensor], torch.Tensor]


class MultiTokenAttention(TokenMixer):
    """Attention whose scores see those of neighbouring queries, keys and heads. `(B, H, W, C) -> (B, H, W, C)`.

    All kernels and mixing matrices start as the identity. Any H, W >= 1; borders are padded with zeros.

    Args:
        dim: Width C.
        num_heads: Heads, a divisor of `dim`.
        kernel: Convolution of the scores before the softmax. On the grid the odd side of two kernels a head, one over
            the keys' map and one over the queries'; in rows (queries, keys) of one kernel a head. None: none.
        kernel_after: The same of the weights after the softmax, which then need neither be positive nor sum to 1.
        head_group: Heads of a group that mix their weights, a divisor of `num_heads`; None: none.
        head_mix: Whether all heads mix their scores before the softmax.
        head_mix_after: Whether all heads mix their weights after it; not with `head_group`.
        norm: RMS norm of each head's result, with one weight for all heads.
        gate: Gate of each head's result, computed from it.
        gate_1d: Whether a head has one gate, not one a channel.
        rescale_layer: Number of the layer, from 0, by which the normed result is scaled: 1 - (0.8 - 0.6 exp(-0.3 l)).
        layout: `grid` or `raster`: see above.
        causal: In rows: whether a token sees itself and those before it only.
        pad_key: In rows: where keys are padded, `both`, `left` or `right`. Queries always are on the left.
        qkv_bias: Whether the projections to queries, keys and values have biases.
        proj_bias: Whether the output projection has one.
        attn_drop: Dropout of the attention weights.
        proj_drop: Dropout after the output projection.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: If an argument is out of range, or arguments do not go together.
    """

    kernel_k: nn.Parameter | None
    kernel_q: nn.Parameter | None
    kernel_k_after: nn.Parameter | None
    kernel_q_after: nn.Parameter | None
    mta_kernel: nn.Parameter | None
    mta_kernel_after_sm: nn.Parameter | None

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        kernel: int | tuple[int, int] | None = 3,
        kernel_after: int | tuple[int, int] | None = None,
        head_group: int | None = None,
        head_mix: bool = False,
        head_mix_after: bool = False,
        norm: bool = True,
        gate: bool = False,
        gate_1d: bool = True,
        rescale_layer: int | None = None,
        layout: str = "grid",
        causal: bool = False,
        pad_key: str = "both",
        qkv_bias: bool = False,
        proj_bias: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        check_choice("layout", layout, ("grid", "raster"))
        check_choice("pad_key", pad_key, ("both", "left", "right"))
        if head_group is not None and (head_group < 1 or num_heads % head_group):
            raise ValueError(f"head_group must divide num_heads={num_heads}, got {head_group}")
        if head_group is not None and head_mix_after:
            raise ValueError("only one of head_group and head_mix_after can mix heads after the softmax, got both")
        if layout == "grid" and (causal or pad_key != "both"):
            raise ValueError(f"causal and pad_key are for layout='raster', got causal={causal}, pad_key={pad_key!r}")
        if rescale_layer is not None and (rescale_layer < 0 or not norm):
            raise ValueError(f"rescale_layer must be at least 0, with norm=True, got {rescale_layer}, norm={norm}")
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        head_dim = dim // num_heads
        self.num_heads = num_heads
        self.layout = layout
        self.causal = causal
        self.pad_key = pad_key
        self.rescale = 1.0 if rescale_layer is None else 1 - (0.8 - 0.6 * exp(-0.3 * rescale_layer))
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **dd)
        for after, size in (("", kernel), ("_after", kernel_after)):
            in_rows = "mta_kernel" + ("_after_sm" if after else "")
            sizes = kernel_sizes(f"kernel{after}", size, layout, pad_key)
            for name in (f"kernel_k{after}", f"kernel_q{after}", in_rows):
                used = sizes is not None and (layout == "raster") == (name == in_rows)
                empty = torch.empty(num_heads, 1, *sizes, **dd) if used and sizes else None
                self.register_parameter(name, None if empty is None else nn.Parameter(empty))
        self.wpsm = nn.Linear(num_heads, num_heads, bias=False, **dd) if head_mix else None
        self.wposm = nn.Linear(num_heads, num_heads, bias=False, **dd) if head_mix_after else None
        self.head_kernel = None
        if head_group is not None:
            groups = (num_heads // head_group, head_group, head_group)
            self.head_kernel = nn.Parameter(torch.empty(groups, **dd))
        self.attn_drop = nn.Dropout(attn_drop)
        self.subln = nn.RMSNorm(head_dim, eps=1e-5, **dd) if norm else None
        self.gate = nn.Linear(head_dim, 1 if gate_1d else head_dim, **dd) if gate else None
        self.proj = nn.Linear(dim, dim, bias=proj_bias, **dd)
        self.proj_drop = nn.Dropout(proj_drop)
        self.init_weights()
        convert_when_loading(self)

    def init_weights(self) -> None:
        """Initialises every kernel and mixing matrix to the identity."""
        with torch.no_grad():
            for kernel in (self.kernel_k, self.kernel_q, self.kernel_k_after, self.kernel_q_after):
                if kernel is not None:
                    kernel.zero_()[..., kernel.shape[2] // 2, kernel.shape[3] // 2] = 1
            for kernel in (self.mta_kernel, self.mta_kernel_after_sm):
                if kernel is not None:
                    kernel.zero_()[..., -1, zeros_before(kernel.shape[3], self.pad_key)] = 1
            for layer in (self.wpsm, self.wposm):
                if layer is not None:
                    layer.weight.zero_().fill_diagonal_(1)
            if self.head_kernel is not None:
                self.head_kernel.zero_().diagonal(dim1=1, dim2=2).fill_(1)

    @staticmethod
    def to_native(state_dict: Mapping[str, torch.Tensor], prefix: str = "") -> dict[str, torch.Tensor]:
        """Official weights under the names used here; other entries as they are.

        Args:
            state_dict: Weights in the official format, or ours.
            prefix: What the names of this module's entries begin with.
        """
        return join_projections(state_dict, prefix, ("wq", "wk", "wv"), "wo")

    def forward_tokens(
        self,
        x: torch.Tensor,
        grid: tuple[int, int],
        prefix: int = 0,
        *,
        rotate: Rotation | None = None,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attention of tokens, `(B, prefix + H * W, C) -> (B, prefix + H * W, C)`.

        Args:
            x: The tokens, extra ones first.
            grid: `(H, W)`, over which is convolved.
            prefix: Number of extra tokens: scores by them and of them are not convolved.
            rotate: Rotates queries and keys `(B, num_heads, N, C / num_heads)` by their positions.
            bias: Added to the scores after convolving and mixing; broadcasts to `(B, num_heads, N, N)`.
        """
        q, k, v = self._heads(x)
        if rotate is not None:
            q, k = rotate(q), rotate(k)
        if self.layout == "grid" and self.wpsm is None and self.wposm is None and self.head_kernel is None:
            out = self._folded(q, k, v, grid, prefix, bias)
        else:
            out = (self.attn_drop(self._dense(q, k, grid, prefix, bias)) @ v).transpose(1, 2)
        if self.subln is not None:
            out = self.subln(out) * self.rescale
        if self.gate is not None:
            out = out * self.gate(out).sigmoid()
        return self.proj_drop(self.proj(out.flatten(2)))

    def weights(self, x: torch.Tensor, grid: tuple[int, int] | None = None, prefix: int = 0) -> torch.Tensor:
        """The attention weights before norm and gate, `(B, num_heads, N, N)`.

        Args:
            x: A map `(B, H, W, C)`, or tokens `(B, prefix + H * W, C)`.
            grid: `(H, W)` of tokens; not needed for `layout="raster"`.
            prefix: Number of extra tokens.

        Raises:
            ValueError: If tokens come without their grid.
        """
        if x.ndim == 4:
            grid = (x.shape[1], x.shape[2])
        if grid is None:
            if self.layout == "grid":
                raise ValueError("weights of tokens need their grid, got grid=None")
            grid = (1, x.shape[1] - prefix)
        q, k, _ = self._heads(x.flatten(1, -2))
        return self._dense(q, k, grid, prefix, None)

    def _heads(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values, `(B, num_heads, N, C / num_heads)` each."""
        return split_heads(self.qkv(x), self.num_heads)

    def _folded(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        grid: tuple[int, int],
        prefix: int,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        """The results `(B, N, num_heads, d)` without the weights: a convolution of products is one of their factors."""
        scale, dropped = q.shape[-1] ** -0.5, self.attn_drop.p if self.training else 0.0
        queries, keys, values = (x[:, :, prefix:] for x in (q, k, v))
        mixed_q, mixed_k = conv_tokens(queries, self.kernel_q, grid), conv_tokens(keys, self.kernel_k, grid)
        after: torch.Tensor | None = self.kernel_k_after
        mixed_v = values if after is None else conv_tokens(values, after.flip(2, 3), grid)
        if prefix:  # in channels of their own, since scores of extra tokens are not convolved
            mixed_q = torch.cat([mixed_q, queries], -1)
            mixed_k = beside(k[:, :, :prefix], mixed_k)
            mixed_v = v if after is None else beside(v[:, :, :prefix], mixed_v)
        mask = bias_rows(bias, prefix, None)
        out = attention(mixed_q, mixed_k, mixed_v, mask=mask, scale=scale, dropout_p=dropped)
        out = out.unflatten(-1, (self.num_heads, -1))
        if after is not None:
            here, *extra = out.transpose(1, 2).split(q.shape[-1], -1)
            out = sum(extra, conv_tokens(here, self.kernel_q_after, grid)).transpose(1, 2)
        if prefix:
            of_extra = attention(
                q[:, :, :prefix], k, v, mask=bias_rows(bias, 0, prefix), scale=scale, dropout_p=dropped
            )
            out = torch.cat([of_extra.unflatten(-1, (self.num_heads, -1)), out], 1)
        return out

    def _dense(
        self, q: torch.Tensor, k: torch.Tensor, grid: tuple[int, int], prefix: int, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """The weights, `(B, num_heads, N, N)`."""
        hidden = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).triu(1) if self.causal else None
        q = q * q.shape[-1] ** -0.5
        if self.layout == "grid":
            mixed = [conv_tokens(x[:, :, prefix:], w, grid) for x, w in ((q, self.kernel_q), (k, self.kernel_k))]
            block = mixed[0] @ mixed[1].mT
            scores = put_block(block, q @ k.mT, prefix) if prefix else block
        else:
            scores = q @ k.mT
            if self.mta_kernel is not None:
                scores = put_block(self._in_rows(scores, self.mta_kernel, hidden, prefix), scores, prefix)
        if self.wpsm is not None:
            scores = torch.einsum("ij,bjnm->binm", self.wpsm.weight, scores)
        if bias is not None:
            scores = scores + bias
        weights = (scores if hidden is None else scores.masked_fill(hidden, float("-inf"))).softmax(-1)
        if self.kernel_k_after is not None and self.kernel_q_after is not None:
            block = conv_keys(weights[:, :, prefix:, prefix:], self.kernel_k_after, grid)
            weights = put_block(conv_keys(block.mT, self.kernel_q_after, grid).mT, weights, prefix)
        if self.mta_kernel_after_sm is not None:
            weights = put_block(self._in_rows(weights, self.mta_kernel_after_sm, hidden, prefix), weights, prefix)
            weights = weights if hidden is None else weights.masked_fill(hidden, 0)
        if self.wposm is not None:
            weights = torch.einsum("ij,bjnm->binm", self.wposm.weight, weights)
        if self.head_kernel is not None:
            groups = weights.unflatten(1, self.head_kernel.shape[:2])
            weights = torch.einsum("bgenm,gef->bgfnm", groups, self.head_kernel).flatten(1, 2)
        return weights

    def _in_rows(self, x: torch.Tensor, kernel: torch.Tensor, hidden: torch.Tensor | None, prefix: int) -> torch.Tensor:
        """Convolved scores or weights of the patches, with zeros where keys are hidden."""
        x = (x if hidden is None else x.masked_fill(hidden, 0))[:, :, prefix:, prefix:]
        left = zeros_before(kernel.shape[3], self.pad_key)
        x = F.pad(x, (left, kernel.shape[3] - 1 - left, kernel.shape[2] - 1, 0))
        return F.conv2d(x, kernel, groups=self.num_heads)


def _with_bias(context: BlockContext) -> dict[str, Any]:
    return {"proj_bias": True}


CARD = Card(
    name="mta",
    title="Multi-Token Attention",
    kind="mixer",
    factory=MultiTokenAttention,
    summary="softmax attention with scores convolved over neighbouring queries and keys",
    flow="((q | k) -> @ -> conv over queries and keys -> softmax | v) -> @ -> proj",
    paper="arXiv:2504.00927",
    code="https://github.com/facebookresearch/RAM",
    license="MIT",
    placement="in every fourth block in place of attention; here in every block",
    avoid="with heads mixed on large maps, where scores of all pairs are then held; unmixed, its convolutions come "
    "on top of full attention",
    columnar=("nano", "tiny"),
    keywords=_with_bias,
    cases={
        "": {"num_heads": 3},
        "full": {"num_heads": 4, "kernel_after": 3, "head_group": 2, "head_mix": True, "gate": True},
        "after": {"num_heads": 2, "kernel_after": 5, "norm": False},
        "raster": {"num_heads": 2, "kernel": (2, 3), "kernel_after": (2, 3), "layout": "raster", "causal": True},
    },
    floor=WINDOWS,
    cost="N^2",
    memory="N",
    keeps_weights=True,
    maps=True,
    reference="multi_token",
)
