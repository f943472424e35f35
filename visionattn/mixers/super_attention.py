"""Optimised, Efficient and Super attention: fewer projections, and values that are aligned (arXiv 2403.01643).

No official code was found; the formulas are the paper's.

Differs from the official code in: not known. Biases are optional; the matrix that aligns starts as the identity, with
which Super attention is Efficient attention, and is resized to any map.

Golden: tests/golden/optimisedattn_*.npz, kvfreeattn_*.npz and superattn_module_*.npz (of an independent
implementation), superattn_perhead_*.npz (https://github.com/NMesaC/pay-better-attention-pytorch-keras, made with the
authors' help, its softmax over the keys).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.catalog import BlockContext, Card
from visionattn.ops import attention
from visionattn.utils.arguments import check_heads, pair
from visionattn.utils.factory import FactoryKwargs

from ._common import WINDOWS, TokenMixer, convert_when_loading

__all__ = ["AlignedAttention", "KeyValueFreeAttention"]


class KeyValueFreeAttention(TokenMixer):
    """Softmax attention whose values are the channels of the input. `(B, H, W, C) -> (B, H, W, C)`, any H, W >= 1.

    A head's values, and without `key_proj` its keys, are its share of the channels, so a layer before should mix these.

    Args:
        dim: Width C.
        num_heads: Heads, a divisor of `dim`.
        key_proj: Whether keys are projected (the paper's Optimised attention) or not (its Efficient attention).
        bias: Whether the projections have biases.
        causal: Whether a token sees itself and those before it only.
        attn_drop: Dropout of the attention weights.
        proj_drop: Dropout after the output projection.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: If `num_heads` does not divide `dim`.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        key_proj: bool = False,
        bias: bool = True,
        causal: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.causal = causal
        self.wq = nn.Linear(dim, dim, bias=bias, **dd)
        self.wk = nn.Linear(dim, dim, bias=bias, **dd) if key_proj else nn.Identity()
        self.attn_drop = nn.Dropout(attn_drop)
        self.wo = nn.Linear(dim, dim, bias=bias, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward_tokens(self, x: torch.Tensor, grid: tuple[int, int], prefix: int = 0) -> torch.Tensor:
        """Attention of tokens, `(B, prefix + H * W, C) -> (B, prefix + H * W, C)`.

        Args:
            x: The tokens, extra ones first.
            grid: `(H, W)`, which makes no difference here.
            prefix: Number of extra tokens, likewise.
        """
        q, k = self._heads(self.wq(x)), self._heads(self.wk(x))
        v = self._values(x, grid, prefix)
        q, k, v = q, k.to(q.dtype), v.to(q.dtype)  # autocast leaves the input as it is
        dropped = self.attn_drop.p if self.training else 0.0
        return self.proj_drop(self.wo(attention(q, k, v, mask=self._seen(x), dropout_p=dropped)))

    def weights(self, x: torch.Tensor) -> torch.Tensor:
        """The attention weights, `(B, num_heads, N, N)`, of a map `(B, H, W, C)` or tokens `(B, N, C)`."""
        tokens = x.flatten(1, -2)
        q, k = self._heads(self.wq(tokens)), self._heads(self.wk(tokens))
        scores, seen = q @ k.mT * q.size(-1) ** -0.5, self._seen(tokens)
        return (scores if seen is None else scores.masked_fill(~seen, float("-inf"))).softmax(-1)

    def _seen(self, x: torch.Tensor) -> torch.Tensor | None:
        """The keys visible to each query, `(N, N)`; None: all."""
        return torch.ones(2 * (x.shape[1],), dtype=torch.bool, device=x.device).tril() if self.causal else None

    def _values(self, x: torch.Tensor, grid: tuple[int, int], prefix: int) -> torch.Tensor:
        return self._heads(x)

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        """Splits channels by head, `(B, num_heads, N, C / num_heads)`."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class AlignedAttention(KeyValueFreeAttention):
    """Super attention: Efficient attention whose values a learnt matrix mixes first. `(B, H, W, C) -> (B, H, W, C)`.

    The matrix has a row and a column a token. For other maps it is resized, so that the sums of its rows stay: any
    H, W >= 1.

    Args:
        dim: Width C.
        num_heads: Heads, a divisor of `dim`.
        grid: Height and width of the map that the matrix is learnt for, or one number for both.
        prefix_tokens: Extra tokens that have a row and a column too. With 0 of them extra tokens keep their values.
        per_head: Whether each head has a matrix of its own.
        key_proj: Whether keys are projected.
        bias: Whether the projections have biases, and the matrix one a token.
        causal: Whether a token sees itself and those before it only.
        attn_drop: Dropout of the attention weights.
        proj_drop: Dropout after the output projection.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        grid: int | tuple[int, int] = 14,
        prefix_tokens: int = 0,
        per_head: bool = False,
        key_proj: bool = False,
        bias: bool = True,
        causal: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        super().__init__(
            dim,
            num_heads=num_heads,
            key_proj=key_proj,
            bias=bias,
            causal=causal,
            attn_drop=attn_drop,
            proj_drop=proj_drop,
            **dd,
        )
        if prefix_tokens < 0:
            raise ValueError(f"prefix_tokens must be at least 0, got {prefix_tokens}")
        self.grid = pair("grid", grid)
        self.prefix_tokens = prefix_tokens
        self.align = _Alignment(self.grid[0] * self.grid[1] + prefix_tokens, num_heads if per_head else 0, bias, **dd)
        convert_when_loading(self)

    def init_weights(self) -> None:
        """Initialises the matrix to the identity."""
        self.align.reset()

    @staticmethod
    def to_native(state_dict: Mapping[str, torch.Tensor], prefix: str = "") -> dict[str, torch.Tensor]:
        """Weights of the reimplementation, a layer a head, under the names used here; other entries as they are.

        Args:
            state_dict: The weights.
            prefix: What the names of this module's entries begin with.
        """
        native = dict(state_dict)
        for kind in ("weight", "bias"):
            for name, ours, join in (("W_q", "wq", torch.cat), ("W_k", "wk", torch.cat), ("W_a", "align", torch.stack)):
                heads: list[torch.Tensor] = []
                while (key := f"{prefix}layers.Attention_Layer {len(heads)}.{name}.{kind}") in native:
                    heads.append(native.pop(key))
                if heads:
                    native[f"{prefix}{ours}.{kind}"] = join(heads)
            if f"{prefix}W_o.{kind}" in native:
                native[f"{prefix}wo.{kind}"] = native.pop(f"{prefix}W_o.{kind}")
        return native

    def weights(self, x: torch.Tensor) -> torch.Tensor:
        """The weight of each input for each output token, `(B, num_heads, N, N)`, without the matrix's bias."""
        return super().weights(x) @ self._matrix((x.shape[1], x.shape[2]), 0)[0]

    def _values(self, x: torch.Tensor, grid: tuple[int, int], prefix: int) -> torch.Tensor:
        matrix, bias = self._matrix(grid, prefix)
        own = prefix - self.prefix_tokens  # extra tokens without a row: those of a matrix for the map alone
        mapped = x[:, own:]
        values = self._heads(matrix @ mapped) if matrix.ndim == 2 else matrix @ self._heads(mapped)
        if bias is not None:
            values = values + bias.unsqueeze(-1)
        return torch.cat([self._heads(x[:, :own]).to(values.dtype), values], 2) if own else values

    def _matrix(self, grid: tuple[int, int], prefix: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The matrix, `(N, N)` or one a head, and its bias, `(N)` or one a head, for a map of this size."""
        if prefix != self.prefix_tokens and self.prefix_tokens:
            raise ValueError(f"prefix must be prefix_tokens={self.prefix_tokens}, got {prefix}")
        matrix: torch.Tensor = self.align.weight
        bias: torch.Tensor | None = self.align.bias
        first = self.prefix_tokens
        if tuple(grid) != self.grid:
            keys = matrix[..., first:]
            share = _resize(keys, self.grid, grid) * (self.grid[0] * self.grid[1] / (grid[0] * grid[1]))
            kept = (keys.sum(-1, keepdim=True) - share.sum(-1, keepdim=True)) / share.shape[-1]
            matrix = torch.cat([matrix[..., :first], share + kept], -1)
            queries = _resize(matrix[..., first:, :].mT, self.grid, grid).mT
            matrix = torch.cat([matrix[..., :first, :], queries], -2)
            if bias is not None:
                bias = torch.cat([bias[..., :first], _resize(bias[..., first:], self.grid, grid)], -1)
        return (matrix.tril() if self.causal else matrix), bias


class _Alignment(nn.Module):
    """A matrix of tokens by tokens, for all heads or for each, and a bias for each token."""

    bias: nn.Parameter | None

    def __init__(self, tokens: int, heads: int, bias: bool, **dd: Any) -> None:
        super().__init__()
        sides = (heads, tokens, tokens) if heads else (tokens, tokens)
        self.weight = nn.Parameter(torch.empty(sides, **dd))
        self.register_parameter("bias", nn.Parameter(torch.empty(sides[:-1], **dd)) if bias else None)
        self.reset()

    def reset(self) -> None:
        with torch.no_grad():
            self.weight.zero_().diagonal(dim1=-2, dim2=-1).fill_(1)
            if self.bias is not None:
                self.bias.zero_()


def _resize(rows: torch.Tensor, before: tuple[int, int], after: tuple[int, int]) -> torch.Tensor:
    """Resizes maps. `(..., H * W) -> (..., H' * W')`."""
    maps = rows.reshape(-1, 1, *before)
    maps = F.interpolate(maps, after, mode="bilinear", align_corners=False)
    return maps.reshape(*rows.shape[:-1], after[0] * after[1])


def _grid(context: BlockContext) -> dict[str, Any]:
    return {"grid": context.grid or (14, 14)}


CARDS = (
    Card(
        name="kv_free",
        title="Efficient and Optimised Attention: You Need to Pay Better Attention",
        kind="mixer",
        factory=KeyValueFreeAttention,
        summary="attention whose values, and keys, are the channels of the input",
        flow="((q | x as k) -> @ -> softmax | x as v) -> @ -> proj",
        paper="arXiv:2403.01643",
        placement="in every block in place of attention",
        avoid="to take over pretrained attention: it has no projections of keys and values to put the weights into",
        columnar=("nano", "tiny"),
        cases={"": {"num_heads": 3}, "key_proj": {"num_heads": 4, "key_proj": True, "bias": False}},
        floor=WINDOWS,
        cost="N^2",
        memory="N",
        maps=True,
        reference="super_attention",
    ),
    Card(
        name="super",
        title="Super Attention: You Need to Pay Better Attention",
        kind="mixer",
        factory=AlignedAttention,
        summary="attention whose keys are the channels of the input, and its values those aligned by a learnt matrix",
        flow="((q | x as k) -> @ -> softmax | (x as v | {alignment}) -> @) -> @ -> proj",
        paper="arXiv:2403.01643",
        placement="in every block in place of attention",
        avoid="with pictures of many sizes: the matrix that aligns the values belongs to one grid, with its "
        "number of positions squared as parameters",
        columnar=("nano", "tiny"),
        keywords=_grid,
        cases={
            "": {"num_heads": 3, "grid": 8},
            "per_head": {"num_heads": 4, "grid": (9, 7), "per_head": True, "key_proj": True},
            "causal": {"num_heads": 3, "grid": 5, "causal": True, "bias": False},
        },
        floor=WINDOWS,
        cost="N^2",
        memory="N",
        maps=True,
        reference="super_attention",
    ),
)
