"""Attention whose scores no fused form computes: some queries at a time, so that not all pairs are held at once."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from ._modes import is_exporting
from .recomputed import recomputed

__all__ = ["CACHED", "KEPT", "in_tiles"]

Result = TypeVar("Result")
# Numbers of a run: few enough for the caches, many enough for products of more than a few queries.
CACHED = 1 << 20
# Numbers of all runs that are kept for the backward pass rather than computed anew.
KEPT = 1 << 22


def in_tiles(
    function: Callable[..., Result],
    queries: Sequence[torch.Tensor],
    numbers: int,
    *,
    dim: int = 2,
    held: int = CACHED,
    kept: int = KEPT,
    random: bool = False,
) -> list[Result]:
    """`function(some, *parts)` for each of the runs `some` that the queries are divided into.

    With several runs the backward pass computes each anew, unless all together are few. Exported graphs have one run.

    Args:
        function: What to compute of queries; `parts` are theirs of the tensors.
        queries: Tensors with a place for each query. They are split here: each slice of one would have a gradient of
            full size.
        numbers: Numbers that a query needs, such as its scores in all heads and images.
        dim: Of the queries in the tensors.
        held: Numbers that a run may need; one query is the least.
        kept: Numbers that all queries may need together for their runs to be kept for the backward pass.
        random: Whether the function draws random numbers, as dropout does.
    """
    count = queries[0].size(dim)
    rows = count if is_exporting() else max(1, held // max(1, numbers))
    if rows >= count:
        return [function(slice(0, count), *queries)]
    starts = range(0, count, rows)
    runs = [slice(start, min(start + rows, count)) for start in starts]
    parts = zip(*(tensor.split(rows, dim) for tensor in queries), strict=True)
    if count * numbers <= kept:
        return [function(some, *own) for some, own in zip(runs, parts, strict=True)]
    return [recomputed(function, some, *own, random=random) for some, own in zip(runs, parts, strict=True)]
