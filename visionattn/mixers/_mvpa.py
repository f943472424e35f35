"""Parts shared by both forms of MVPA: grouped keys, and position scores on two axes."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.ops import attention
from visionattn.utils.arguments import check_heads, check_positive

__all__ = [
    "Terms",
    "attend_by_features",
    "kv_width",
    "of_pairs",
    "position_scores",
    "start_small",
    "tables_by_head",
    "tokens_by_head",
]

Terms = tuple[torch.Tensor, torch.Tensor]


def kv_width(dim: int, num_heads: int, num_kv_heads: int | None) -> int:
    """Width of keys and values of all their heads."""
    check_heads(dim, num_heads)
    heads = num_heads if num_kv_heads is None else num_kv_heads
    check_positive(num_kv_heads=heads)
    if num_heads % heads:
        raise ValueError(f"num_kv_heads must divide num_heads={num_heads}, got {heads}")
    return dim // num_heads * heads


def start_small(module: nn.Module) -> None:
    for parameter in module.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.02)
        else:
            nn.init.zeros_(parameter)


def tables_by_head(x: torch.Tensor, num_heads: int, width: int) -> torch.Tensor:
    """Splits features `(..., total width)` by head, repeated for query heads: `(num_heads, ..., width)`."""
    parts = x.unflatten(-1, (-1, width)).movedim(-2, 0)
    return parts if parts.shape[0] == num_heads else parts.repeat_interleave(num_heads // parts.shape[0], 0)


def tokens_by_head(x: torch.Tensor, num_heads: int, width: int) -> torch.Tensor:
    """Tokens `(B, N, width of all)` as `(B, num_heads, N, width)`."""
    parts = x.unflatten(-1, (-1, width)).transpose(1, 2)
    return parts if parts.shape[1] == num_heads else parts.repeat_interleave(num_heads // parts.shape[1], 1)


def position_scores(q: torch.Tensor, biases: Sequence[torch.Tensor], tables: Sequence[torch.Tensor]) -> Terms:
    """Scores of each position with rows and with columns: `(B, heads, H, W, H)`, `(B, heads, H, W, W)`.

    Args:
        q: Queries, `(B, heads, H, W, d)`.
        biases: Added to them for rows and for columns, `(heads, d)`.
        tables: Of the offsets from each row to each and likewise of columns, `(heads, H, H, d)`, `(heads, W, W, d)`.
    """
    by_row, by_column = (q + bias.view(1, q.shape[1], 1, 1, -1) for bias in biases)
    return (
        torch.einsum("bhrcd,hrjd->bhrcj", by_row, tables[0]),
        torch.einsum("bhrcd,hcjd->bhrcj", by_column, tables[1]),
    )


def of_pairs(terms: Terms) -> torch.Tensor:
    """The position scores of all pairs, `(B, heads, H W, H W)`."""
    return (terms[0].unsqueeze(-1) + terms[1].unsqueeze(-2)).flatten(4).flatten(2, 3)


def attend_by_features(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    terms: Terms,
    grid: tuple[int, int],
    prefix: int,
    dropout_p: float,
) -> torch.Tensor:
    """Attention with position scores as additional features, so that a fused form can be used.

    A query has its score with each row and each column, `(B, heads, N, H)` and `(B, heads, N, W)`, a key a 1 for its
    own.
    """
    places = torch.arange(grid[0] * grid[1], device=k.device)
    of_row, of_column = (
        place.unsqueeze(1) == torch.arange(side, device=k.device)
        for place, side in zip((places // grid[1], places % grid[1]), grid, strict=True)
    )
    own = F.pad(torch.cat([of_row, of_column], 1).to(k.dtype), (0, 0, prefix, 0))
    width, more = v.shape[3], own.shape[1]
    q, k = torch.cat([q, *terms], -1), torch.cat([k, own.expand(*k.shape[:2], -1, -1)], -1)
    # PyTorch's fused form for the CPU wants values as wide as keys.
    out = attention(q, k, F.pad(v, (0, more)), scale=width**-0.5, dropout_p=dropout_p)
    return out.unflatten(-1, (v.shape[1], -1))[..., :width].flatten(2)
