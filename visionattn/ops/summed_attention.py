"""Attention whose weights are the unnormalised products of queries and keys."""

import torch

from ._autocast import widened, without_autocast

__all__ = ["summed_attention"]


def summed_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, scale: float = 1.0) -> torch.Tensor:
    """`scale q (k^T v)`, at a cost linear in the tokens. `(..., N, d), 2 x (..., M, .) -> (..., N, e)`.

    In float32 at least: nothing keeps the sums over all keys within the range of half precision.

    Args:
        q: Queries, `(..., N, d)`.
        k: Keys, `(..., M, d)`.
        v: Values, `(..., M, e)`.
        scale: Factor of the result, such as 1 / M.
    """
    with without_autocast(q):
        q, k, v = widened(q), widened(k), widened(v)
        return q @ (k.mT @ v * scale)
