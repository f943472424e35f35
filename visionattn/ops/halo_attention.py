"""Attention of query blocks to the block and a halo around it, with query-dependent relative positions."""

import torch
from torch.nn import functional as F

from ._dispatch import has_kernel
from .attention import attention
from .window_attention import WIDEST

__all__ = ["halo_attention"]


def _refuses(q: torch.Tensor, *others: object, dropout_p: float = 0.0, **settings: object) -> str:
    if dropout_p > 0:
        return "attention weights are dropped"
    return f"heads are wider than {WIDEST}" if q.size(-1) > WIDEST else ""


@has_kernel("halo_attention", _refuses)
def halo_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    height_rel: torch.Tensor,
    width_rel: torch.Tensor,
    *,
    block_size: int,
    halo_size: int,
    dropout_p: float = 0.0,
) -> torch.Tensor:
    """Attends in windows of side `block_size + 2 * halo_size`. `(B, H, W, heads, d) -> (B, H, W, heads * d)`.

    The logit of a query and a key that stands `dy` rows below and `dx` columns to the right of it is
    `q . k / sqrt(d) + q . height_rel[c + dy] + q . width_rel[c + dx]` with `c` the middle of the tables plus the halo.
    Keys outside the map do not count.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        height_rel: Embedding of each vertical distance, `(2 * window - 1, d)`.
        width_rel: Embedding of each horizontal distance, likewise.
        block_size: Side of the blocks that share their keys; the last ones may be incomplete.
        halo_size: Positions that a window reaches beyond its block, to each side.
        dropout_p: Share of the attention weights that is dropped.
    """
    height, width = q.shape[1:3]
    # A block beyond the map would only hold more padding: what a query sees is the same.
    block = min(block_size, height), min(block_size, width)
    window = block[0] + 2 * halo_size, block[1] + 2 * halo_size
    rest = -height % block[0], -width % block[1]
    grid = (height + rest[0]) // block[0], (width + rest[1]) // block[1]

    queries = F.pad(q, (0, 0, 0, 0, 0, rest[1], 0, rest[0])) if any(rest) else q
    queries = queries.unflatten(2, (grid[1], block[1])).unflatten(1, (grid[0], block[0])).transpose(2, 3).flatten(0, 2)
    k, v = (_windows(x, rest, block, window, halo_size) for x in (k, v))

    mask = [_outside(q, *sizes, halo_size) for sizes in zip((height, width), rest, block, window, strict=True)]
    rows = torch.einsum("nyxhd,ydk->nhyxk", queries, _distances(height_rel, block[0], window[0]))
    columns = torch.einsum("nyxhd,xdk->nhyxk", queries, _distances(width_rel, block[1], window[1]))
    # The masks are added to these two small tensors, so their sum is the only one of the size of the logits.
    rows = (rows.unflatten(0, (-1, *grid)) + mask[0][:, None, None, None, None]).flatten(0, 2)
    columns = (columns.unflatten(0, (-1, *grid)) + mask[1][:, None, None, None]).flatten(0, 2)
    bias = (rows.unsqueeze(-1) + columns.unsqueeze(-2)).flatten(4).flatten(2, 3)

    queries = queries.flatten(1, 2).transpose(1, 2)
    out = attention(queries, k, v, mask=bias, dropout_p=dropout_p)
    out = out.unflatten(1, block).unflatten(0, (-1, *grid)).transpose(2, 3).flatten(1, 2).flatten(2, 3)
    return out[:, :height, :width]


def _windows(
    x: torch.Tensor, rest: tuple[int, int], block: tuple[int, int], window: tuple[int, int], halo: int
) -> torch.Tensor:
    """The overlapping windows of a map `(B, H, W, heads, d)`: `(B * blocks, heads, positions, d)`, one copy."""
    x = F.pad(x, (0, 0, 0, 0, halo, halo + rest[1], halo, halo + rest[0]))
    x = x.unfold(1, window[0], block[0]).unfold(2, window[1], block[1])
    return x.permute(0, 1, 2, 5, 6, 3, 4).flatten(0, 2).flatten(1, 2).transpose(1, 2)


def _distances(table: torch.Tensor, block: int, window: int) -> torch.Tensor:
    """The embedding of key k of a window relative to query i of its block: `(block, d, window)`."""
    middle = table.size(0) // 2
    return table[middle - block + 1 : middle + window].unfold(0, window, 1).flip(0)


def _outside(x: torch.Tensor, size: int, rest: int, block: int, window: int, halo: int) -> torch.Tensor:
    """Zero for the keys of each window that lie on the map, minus infinity for the others: `(windows, window)`."""
    return F.pad(x.new_zeros(size), (halo, halo + rest), value=float("-inf")).unfold(0, window, block)
