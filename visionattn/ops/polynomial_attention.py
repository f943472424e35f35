"""Attention with weights polynomial in the scores, in time linear in the keys (Fastmax, arXiv 2402.07901)."""

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from ._autocast import wide, without_autocast
from .recomputed import recomputed

__all__ = ["polynomial_attention"]

# Tokens whose features are held at a time.
_CHUNK = 1024


def polynomial_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    coefficients: Sequence[float],
    *,
    causal: bool = False,
    dropout_p: float = 0.0,
    quadratic: bool | None = None,
) -> torch.Tensor:
    """Means of the values with weights `f(q k)`, `f(s) = a0 + a1 s + a2 s^2`. `3 x (B, heads, N, d) -> (..., N, d)`.

    The weights are products of features: 1, the numbers of a token, and the products of any two of them. Half precision
    is computed in float32, under autocast too.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        coefficients: a0 and a1, or a0, a1 and a2.
        causal: Whether a token sees only those up to itself.
        dropout_p: Probability of dropping a feature of the highest order.
        quadratic: Whether to form the weights of all pairs; otherwise the features of the keys meet the values first,
            and nothing of size N x N is held. Only the speed differs. None does so where there are fewer keys than
            features. Not with dropout.
    """
    dtype = v.dtype
    with without_autocast(q):
        q, k, v = (part.to(wide(part)) for part in (q, k, v))
        if quadratic is None:
            quadratic = k.size(2) <= _feature_count(q.size(3), len(coefficients) - 1)
        if quadratic and not dropout_p:
            rows = _weights(q, k, coefficients, causal)
            return (rows @ v / rows.sum(-1, keepdim=True)).to(dtype)
        # One column more sums the weights up.
        v = F.pad(v, (0, 1), value=1.0)
        out = (_causal if causal else _linear)(q, k, v, coefficients, dropout_p)
        return (out[..., :-1] / out[..., -1:]).to(dtype)


def _weights(q: torch.Tensor, k: torch.Tensor, coefficients: Sequence[float], causal: bool = False) -> torch.Tensor:
    """The polynomial of the scores."""
    scores = q @ k.mT
    rows = torch.full_like(scores, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        rows = rows * scores + coefficient
    return rows.tril() if causal else rows


def _feature_count(width: int, order: int) -> int:
    return 1 + width + (width * (width // 2 + 1) if order == 2 else 0)


def _features(x: torch.Tensor, order: int, dropout_p: float) -> torch.Tensor:
    """1, the numbers of each token, and at order 2 their products with those 0, 1, ... d // 2 places on, cyclically."""
    ones = x.new_ones(()).expand(*x.shape[:-1], 1)
    if order == 1:
        return torch.cat([ones, F.dropout(x, dropout_p)], -1)
    width = x.size(-1)
    twice = torch.cat([x, x], -1)
    products = torch.cat([x * twice[..., shift : shift + width] for shift in range(width // 2 + 1)], -1)
    return torch.cat([ones, x, F.dropout(products, dropout_p)], -1)


def _factors(coefficients: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    """The multiplicity of each feature, `(features, 1)`: a product of two different numbers counts twice."""
    width = like.size(-1)
    factors = [coefficients[0], *[coefficients[1]] * width]
    if len(coefficients) == 3:
        for shift in range(width // 2 + 1):
            # Half way round, each pair comes up twice by itself.
            once = shift == 0 or 2 * shift == width
            factors += [coefficients[2] * (1 if once else 2)] * width
    return torch.tensor(factors, dtype=like.dtype, device=like.device).unsqueeze(1)


def _summary(k: torch.Tensor, v: torch.Tensor, order: int, dropout_p: float) -> torch.Tensor:
    return _features(k, order, dropout_p).mT @ v


def _read(q: torch.Tensor, summary: torch.Tensor, order: int, dropout_p: float) -> torch.Tensor:
    return _features(q, order, dropout_p) @ summary


def _linear(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, coefficients: Sequence[float], dropout_p: float
) -> torch.Tensor:
    order = len(coefficients) - 1
    parts = zip(k.split(_CHUNK, 2), v.split(_CHUNK, 2), strict=True)
    summary = sum(
        (recomputed(_summary, *part, order, dropout_p, random=dropout_p > 0) for part in parts), start=v.new_zeros(())
    )
    summary = summary * _factors(coefficients, q)
    return torch.cat(
        [recomputed(_read, part, summary, order, dropout_p, random=dropout_p > 0) for part in q.split(_CHUNK, 2)], 2
    )


def _causal(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, coefficients: Sequence[float], dropout_p: float
) -> torch.Tensor:
    """Chunks of as many tokens as there are features: all pairs inside, the summary of those before them outside."""
    order = len(coefficients) - 1
    size = min(_CHUNK, max(16, _feature_count(q.size(3), order)))
    factors = _factors(coefficients, q)
    summary = v.new_zeros(())
    done: list[torch.Tensor] = []
    for queries, keys, values in zip(q.split(size, 2), k.split(size, 2), v.split(size, 2), strict=True):
        out = _weights(queries, keys, coefficients, causal=True) @ values
        if done:
            out = out + recomputed(_read, queries, summary * factors, order, dropout_p, random=dropout_p > 0)
        done.append(out)
        summary = summary + recomputed(_summary, keys, values, order, dropout_p, random=dropout_p > 0)
    return torch.cat(done, 2)
