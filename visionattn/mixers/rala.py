"""RALA: Breaking the Low-Rank Dilemma of Linear Attention (CVPR 2025, arXiv 2411.07635).

Official code: https://github.com/qhfan/RALA (no licence file; the published weights are MIT), classfication/RALA.py:
`GateLinearAttentionNoSilu`, and its softmax form, the blocks `v` of the network RAVLT.

Differs from the official code in:
- maps are channels-last, and the angles of the rotation are made from the size of the map in each module;
- half precision attends in float32;
- extra tokens, if any, are not rotated and get no convolution of the values.

Golden: tests/golden/rala_*_module_*.npz (outputs and input gradients).
"""

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.catalog import Card, Floor
from visionattn.ops import attention, nhwc_conv, rank_augmented_attention, rotate_pairs, rotation_tables
from visionattn.ops.eager.linear_attention import heads
from visionattn.ops.projection import linear_apart
from visionattn.ops.rank_augmented_attention import augmented_features
from visionattn.utils.arguments import check_odd
from visionattn.utils.factory import FactoryKwargs

from ._common import TokenMixer

__all__ = ["RankAugmentedLinearAttention"]


class RankAugmentedLinearAttention(TokenMixer):
    """Linear attention whose keys are weighted by the mean query, with an output gate. `(B, H, W, C) -> (B, H, W, C)`.

    Both raise the rank of what linear attention can give: the weights that of the summary of the keys and values, the
    gate that of the result. Positions come from two-dimensional rotations and a convolution of the values. Any H,
    W >= 1. Its parameters have the official names and shapes.

    Args:
        dim: Width C.
        num_heads: Heads; their width must be a multiple of 4.
        softmax: Attend by the softmax of the rotated products instead, as RAVLT's late stages do, with all else alike.
        kernel_size: Side of the depthwise convolution of the values, odd.
        qkv_bias: Whether the projection to queries, keys, values and gates has a bias.
        attn_drop: Dropout of the attention weights; linear attention has none.
        proj_drop: Dropout after the output projection.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: If `num_heads` does not divide `dim` into multiples of 4, or `kernel_size` is even.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        softmax: bool = False,
        kernel_size: int = 5,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if dim < 1 or num_heads < 1 or dim % (4 * num_heads):
            raise ValueError(
                "num_heads must divide dim into multiples of 4 (two rotated pairs), "
                f"got dim={dim}, num_heads={num_heads}"
            )
        check_odd(kernel_size=kernel_size)
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.softmax = softmax
        self.qkvo = nn.Conv2d(dim, 4 * dim, 1, bias=qkv_bias, **dd)
        self.lepe = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim, **dd)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Conv2d(dim, dim, 1, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward_tokens(self, x: torch.Tensor, grid: tuple[int, int], prefix: int = 0) -> torch.Tensor:
        """Attention of tokens, `(B, prefix + H * W, C) -> (B, prefix + H * W, C)`.

        Args:
            x: The tokens, extra ones first.
            grid: `(H, W)` of the others.
            prefix: Number of extra tokens.
        """
        q, k, v, gate = self._project(x)
        tables = rotation_tables(grid, q.shape[2] // self.num_heads, prefix=prefix, like=q)
        if self.softmax:
            q, k = (rotate_pairs(heads(t, self.num_heads), *(table.to(t) for table in tables)) for t in (q, k))
            dropout_p = self.attn_drop.p if self.training else 0.0
            y = attention(q, k, heads(v, self.num_heads), dropout_p=dropout_p)
        else:
            y = rank_augmented_attention(q, k, v, *tables, num_heads=self.num_heads)
        values = v[:, prefix:].unflatten(1, grid)
        local = nhwc_conv(
            values, self.lepe.weight, self.lepe.bias, padding=self.lepe.kernel_size[0] // 2, groups=v.shape[2]
        ).flatten(1, 2)
        y = (y + (F.pad(local, (0, 0, prefix, 0)) if prefix else local)) * gate
        return self.proj_drop(F.linear(y, self.proj.weight.flatten(1), self.proj.bias))

    def weights(self, x: torch.Tensor) -> torch.Tensor:
        """The attention weights before convolution and gate, `(B, num_heads, N, N)`, from `(B, H, W, C)`.

        Those of linear attention need not sum to one, and may be negative.
        """
        q, k, *_ = self._project(x.flatten(1, 2))
        tables = rotation_tables((x.shape[1], x.shape[2]), q.shape[2] // self.num_heads, like=q)
        q, k = (t.to(tables[0].dtype) for t in (q, k))
        if self.softmax:
            q, k = (rotate_pairs(heads(t, self.num_heads), *tables) for t in (q, k))
            return (q @ k.mT * q.size(-1) ** -0.5).softmax(-1).to(x.dtype)
        q, k, z = augmented_features(q, k, self.num_heads)
        q, k = (rotate_pairs(t, *tables) for t in (q, k))
        return (q @ k.mT * (z / k.size(2))).to(x.dtype)

    def _project(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Queries, keys, values and gates, `(B, N, C)` each; slices of one product would be copied."""
        return linear_apart(x, self.qkvo.weight.flatten(1), self.qkvo.bias, 4)


CARD = Card(
    name="rala",
    title="RALA: rank-augmented linear attention",
    kind="mixer",
    factory=RankAugmentedLinearAttention,
    summary="linear attention with keys weighted by the mean query, rotations, and an output gate",
    flow=(
        "(((rotated q | (rotated k, weighted by the mean q | v) -> @) -> @ | v -> depthwise conv) -> + | gate) -> "
        "* -> proj"
    ),
    paper="arXiv:2411.07635",
    code="https://github.com/qhfan/RALA",
    placement="in the blocks of the first two stages, its softmax form in the last two; in the common one in all",
    avoid="on small maps: its gate, rotations and convolution cost more than the pairs that it saves",
    pyramid=("nano", "micro", "tiny"),
    cases={"": {"num_heads": 3}, "softmax": {"num_heads": 3, "softmax": True}},
    floor=Floor(13, 26, "k, v in: 2, then q, v, o in, y out: 4; back recomputes the features; a fourth projection"),
    maps=True,
    reference="rala",
)
