"""Attention whose scores no fused form computes: some queries at a time, so that not all pairs are held at once."""

from collections.abc import Callable
from typing import TypeVar

from ._modes import is_exporting
from .recomputed import recomputed

__all__ = ["CACHED", "in_tiles"]

Result = TypeVar("Result")
# Scores of a tile that stay in a core's cache through the passes over them.
CACHED = 1 << 18


def in_tiles(
    function: Callable[[slice], Result], queries: int, numbers: int, *, held: int = CACHED, random: bool = False
) -> list[Result]:
    """`function(some)` for each of the runs `some` that the queries are divided into.

    With several runs the backward pass computes each anew. Exported graphs have one run.

    Args:
        function: What to compute of queries.
        queries: Their number.
        numbers: Numbers that a query needs, such as its scores in all heads and images.
        held: Numbers that a run may need; one query is the least.
        random: Whether the function draws random numbers, as dropout does.
    """
    rows = queries if is_exporting() else max(1, held // max(1, numbers))
    if rows >= queries:
        return [function(slice(0, queries))]
    starts = range(0, queries, rows)
    return [recomputed(function, slice(start, min(start + rows, queries)), random=random) for start in starts]
