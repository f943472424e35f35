"""Multi-window attention: each head has windows of a size of its own, or none (MW-MAE, arXiv 2306.00561).

Official code: https://github.com/SarthakYadav/mwmae-jax-official, src/modules/layers.py, for sounds.

Differs from the official code in:
- windows are those of a map (ours); runs of tokens, as in the official code, are `layout="sequence"`;
- any length: what whole windows do not cover is padded and left out;
- tokens that the shift brings together do not see each other at all, where the official mask adds -100;
- tables of biases start at zero, so that windows that cover the map start as plain attention;
- dropout of the result has its own rate.

Golden: tests/golden/mwmha_*.npz.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.catalog import BlockContext, Card
from visionattn.ops import (
    Windows,
    attention,
    merge_windows,
    partition_windows,
    relative_position_bias,
    window_attention,
)
from visionattn.utils.arguments import check_choice, check_heads
from visionattn.utils.factory import FactoryKwargs

from ._common import WINDOWS, TokenMixer, split_heads

__all__ = ["MultiWindowAttention"]

Pair = tuple[int, int]


class _Table(nn.Module):
    """A head's bias for each distance in its window."""

    def __init__(self, size: Pair, **dd: Any) -> None:
        super().__init__()
        distances = (2 * size[0] - 1) * (2 * size[1] - 1)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(distances, 1, **dd))


class MultiWindowAttention(TokenMixer):
    """Softmax attention, of each head in windows of its own size. `(B, H, W, C) -> (B, H, W, C)`, any H, W >= 1.

    Args:
        dim: Width C.
        num_heads: Heads, a divisor of `dim`.
        window_sizes: Side of the windows of each head, or one number for all; 0: the whole map.
        shift: Whether windows are moved by half their side. On maps no larger than a window that is not done.
        rel_pos: Whether each head with windows learns a bias for each distance.
        layout: `grid`: windows have two dimensions. `sequence`: they are runs of tokens, row by row.
        qkv_bias: Whether the projections to queries, keys and values have biases.
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
        window_sizes: int | Sequence[int] = 7,
        shift: bool = False,
        rel_pos: bool = True,
        layout: str = "grid",
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        check_choice("layout", layout, ("grid", "sequence"))
        sizes = [window_sizes] * num_heads if isinstance(window_sizes, int) else list(window_sizes)
        if len(sizes) != num_heads or min(sizes) < 0:
            raise ValueError(
                f"window_sizes must be an integer of at least 0, or one for each of {num_heads} heads, "
                f"got {window_sizes}"
            )
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.window_sizes = tuple(sizes)
        self.shift = shift
        self.layout = layout
        # Heads by their windows, and where each then stands.
        self.groups = {size: [i for i, own in enumerate(sizes) if own == size] for size in dict.fromkeys(sizes)}
        order = [head for heads in self.groups.values() for head in heads]
        self.places = [order.index(head) for head in range(num_heads)]
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **dd)
        for head, size in enumerate(sizes):
            if size and rel_pos:
                self.add_module(f"attn_heads_{head}", _Table(self._window(size), **dd))
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def init_weights(self) -> None:
        """Initialises the bias tables to zero."""
        for module in self.children():
            if isinstance(module, _Table):
                nn.init.zeros_(module.relative_position_bias_table)

    def forward_tokens(
        self,
        x: torch.Tensor,
        grid: Pair,
        prefix: int = 0,
        *,
        rotate: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Attention of tokens, `(B, prefix + H * W, C) -> (B, prefix + H * W, C)`.

        Args:
            x: The tokens, extra ones first.
            grid: `(H, W)`.
            prefix: Number of extra tokens: they see all tokens, and every window sees them.
            rotate: Rotates queries and keys `(B, num_heads, N, C / num_heads)` by their positions.
        """
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))
        if rotate is not None:
            q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
            qkv = torch.stack([rotate(q), rotate(k), v], 2).permute(0, 3, 2, 1, 4)
        parts = [self._group(qkv, size, heads, grid, prefix) for size, heads in self.groups.items()]
        out = torch.cat(parts, 2) if len(parts) > 1 else parts[0]
        if self.places != sorted(self.places):
            out = out[:, :, self.places]
        return self.proj_drop(self.proj(out.flatten(2)))

    def weights(self, x: torch.Tensor) -> torch.Tensor:
        """The attention weights, `(B, num_heads, N, N)`, of a map `(B, H, W, C)`."""
        grid = (x.shape[1], x.shape[2])
        q, k, _ = split_heads(self.qkv(x.flatten(1, 2)), self.num_heads)
        scores = q @ k.mT * q.shape[-1] ** -0.5
        if self.layout == "sequence":
            grid = (1, grid[0] * grid[1])
        rows = []
        for head, size in enumerate(self.window_sizes):
            mask = self._mask(head, size, grid, x.device) if size else 0.0
            rows.append((scores[:, head] + mask).softmax(-1))
        return torch.stack(rows, 1)

    def _window(self, size: int) -> Pair:
        return (size, size) if self.layout == "grid" else (1, size)

    def _shift(self, window: Pair, grid: Pair) -> Pair:
        if not self.shift:
            return 0, 0
        sides = zip(window, grid, strict=True)
        down, right = (side // 2 if self.layout == "sequence" or length > side else 0 for side, length in sides)
        return down, right

    def _bias(self, heads: Sequence[int], window: Pair) -> torch.Tensor | None:
        """Biases in a window, `(heads, n, n)`."""
        tables = [getattr(self, f"attn_heads_{head}", None) for head in heads]
        if tables[0] is None:
            return None
        joined = torch.cat([table.relative_position_bias_table for table in tables if table is not None], 1)
        return relative_position_bias(joined, window, window)

    def _group(self, qkv: torch.Tensor, size: int, heads: list[int], grid: Pair, prefix: int) -> torch.Tensor:
        """Heads with windows of one size, `(B, N, 3, num_heads, d) -> (B, N, heads, d)`."""
        if len(heads) < self.num_heads:
            run = heads == list(range(heads[0], heads[-1] + 1))
            qkv = qkv[:, :, :, heads[0] : heads[-1] + 1] if run else qkv[:, :, :, heads]
        dropped = self.attn_drop.p if self.training else 0.0
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if not size:
            return attention(q, k, v, dropout_p=dropped).unflatten(-1, (len(heads), -1))
        if self.layout == "sequence":
            grid = (1, grid[0] * grid[1])
        window = self._window(size)
        shift, bias = self._shift(window, grid), self._bias(heads, window)
        maps = qkv[:, prefix:].flatten(2).unflatten(1, grid)
        if not prefix:
            out = window_attention(
                maps,
                None,
                None,
                num_heads=len(heads),
                window=window,
                shift=shift,
                bias=bias,
                mask_padding=True,
                dropout_p=dropped,
            )
            return out.flatten(1, 2).unflatten(-1, (len(heads), -1))
        windows = partition_windows(maps, window, shift).unflatten(-1, (3, len(heads), -1))
        queries, keys, values = windows.permute(2, 0, 3, 1, 4).unbind(0)
        blocks = Windows(grid, window, shift)
        mask = _seen(blocks, bias, prefix, q).expand(q.shape[0], -1, -1, -1, -1).flatten(0, 1)
        count = windows.shape[0] // q.shape[0] if q.shape[0] else 1
        keys, values = (
            torch.cat([part[:, :, :prefix].repeat_interleave(count, 0), inside], 2)
            for part, inside in ((k, keys), (v, values))
        )
        out = merge_windows(attention(queries, keys, values, mask=mask, dropout_p=dropped), grid, window, shift)
        extra = attention(q[:, :, :prefix], k, v, dropout_p=dropped)
        return torch.cat([extra, out.flatten(1, 2)], 1).unflatten(-1, (len(heads), -1))

    def _mask(self, head: int, size: int, grid: Pair, device: torch.device) -> torch.Tensor:
        """The bias of a head for all pairs of a map, `(N, N)`."""
        window = self._window(size)
        shift = self._shift(window, grid)
        tokens = Windows(grid, window, shift).tokens(device)
        parts = Windows(grid, window, shift).parts(device)
        count = grid[0] * grid[1]
        bias = self._bias([head], window)
        inside = torch.zeros_like(parts.unsqueeze(2) == parts.unsqueeze(1), dtype=self.qkv.weight.dtype)
        inside = inside if bias is None else inside + bias
        inside = inside.masked_fill(parts.unsqueeze(2) != parts.unsqueeze(1), float("-inf"))
        full = inside.new_full((count + 1, count + 1), float("-inf"))  # the last for empty slots
        places = (tokens.unsqueeze(2).expand_as(inside), tokens.unsqueeze(1).expand_as(inside))
        return full.index_put(places, inside)[:count, :count]


def _seen(blocks: Windows, bias: torch.Tensor | None, prefix: int, q: torch.Tensor) -> torch.Tensor:
    """The bias on the scores of each window's tokens, extra tokens first, `(U, heads or 1, n, prefix + n)`."""
    real = blocks.tokens(q.device) < blocks.size[0] * blocks.size[1]
    part = blocks.parts(q.device)
    seen = (part.unsqueeze(2) == part.unsqueeze(1)) & real.unsqueeze(1)
    mask = torch.zeros(1, 1, 1, dtype=q.dtype, device=q.device) if bias is None else bias.to(q.dtype)
    return F.pad(torch.where(seen.unsqueeze(1), mask, float("-inf")), (prefix, 0))


def _sizes(context: BlockContext) -> dict[str, Any]:
    """The window sizes of the heads: the proper divisors of the map's side; the last head sees the whole map."""
    side = max(context.grid) if context.grid else 14
    divisors = [size for size in range(2, side) if side % size == 0] or [min(side, 7)]
    return {"window_sizes": [*[divisors[-1 - i % len(divisors)] for i in range(context.num_heads - 1)][::-1], 0]}


CARD = Card(
    name="multi_window",
    title="Multi-window attention",
    kind="mixer",
    factory=MultiWindowAttention,
    summary="softmax attention whose heads have windows of different sizes",
    flow=(
        "qkv -> (some heads: softmax attention in small windows | others: in larger windows | others: over the "
        "whole map) -> concat -> proj"
    ),
    paper="arXiv:2306.00561",
    code="https://github.com/SarthakYadav/mwmae-jax-official",
    placement="in every block of a decoder in place of attention; here in every block",
    avoid="where every head must see far: a head with windows never looks beyond its own",
    columnar=("nano", "tiny"),
    keywords=_sizes,
    cases={
        "": {"num_heads": 4, "window_sizes": (2, 3, 3, 0)},
        "shift": {"num_heads": 3, "window_sizes": (4, 0, 4), "shift": True},
        "sequence": {"num_heads": 3, "window_sizes": (5, 8, 0), "layout": "sequence"},
    },
    floor=WINDOWS,
    cost="N^2",
    keeps_weights=True,
    maps=True,
    reference="multi_window",
)
