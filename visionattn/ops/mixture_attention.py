"""Attention as a mixture of Gaussians (arXiv 2106.15338): keys and values are means, queries are observations.

Which key a query came from has the probabilities `w_ij`, softmax over j of

    -a_j / 2 |q_i - k_j|^2 - b_j / 2 |start_i - v_j|^2 + log prior_ij

and each query takes the mean of the values under them. A few steps of expectation maximisation move the keys towards
the queries, and the values towards those that are known at some positions.

The squares are multiplied out, and what is the same for all keys of a query is left out: the scores are one product.
"""

from typing import Any

import torch

from ._autocast import widened, without_autocast
from ._modes import needs_formula
from .attention import softmax_attention

__all__ = ["mixture_attention", "mixture_weights"]

Precision = float | torch.Tensor
# Keeps means over nothing from being 0 / 0, as in the official code.
_TINY = 1e-20


def mixture_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    precision: Precision,
    value_precision: Precision = 0.0,
    *,
    magnitude: str = "none",
    bias: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    start: torch.Tensor | None = None,
    q_pos: torch.Tensor | None = None,
    k_pos: torch.Tensor | None = None,
    v_pos: torch.Tensor | None = None,
    key_iters: int = 0,
    key_prior: float | None = None,
    values: torch.Tensor | None = None,
    known: torch.Tensor | None = None,
    value_iters: int = 0,
    value_prior: float | None = None,
    dropout_p: float = 0.0,
) -> torch.Tensor:
    """Means of the values, `(B, heads, N, e)`; with `v_pos` `(B, heads, N, 2 e)`, those of the positions behind.

    In float32 at least inside. With a precision of `d ** -0.5` and `magnitude="keys"` it is softmax attention.

    Args:
        q: Queries, `(B, heads, N, d)`.
        k: Keys, `(B, heads, M, d)`.
        v: Values, `(B, heads, M, e)`.
        precision: Of the keys, a: one number, or one for each key, `(B, heads, M)`.
        value_precision: Of the values, b, likewise.
        magnitude: Which lengths the prior makes up for, that is, adds half their squares times the precision of:
            `none`, `keys`, or `both` keys and values.
        bias: The logarithm of a further prior; broadcasts to `(B, heads, N, M)`.
        mask: Factors of the weights before they are normalised, such as 0 or 1, or False or True; broadcasts likewise.
        start: Values of the queries to compare with those of the keys, `(B, heads, N, e)`.
        q_pos: Means that queries have at each pair of positions besides, `(N, M, d)`.
        k_pos: Those that keys have, `(N, M, d)`.
        v_pos: A position part of the values, `(N, M, e)`.
        key_iters: Steps that move the keys.
        key_prior: Precision of the keys' own place. None: they become means of queries.
        values: Values that are known, at the queries, `(B, heads, N, e)`. They need as many queries as keys.
        known: How much they count, 0 or 1, or False or True; broadcasts to `(B, heads, N)`.
        value_iters: Steps that move the values, where an image has some that are known.
        value_prior: As `key_prior`. None: values become means of known ones.
        dropout_p: Probability of dropping a weight in the last mean.

    Raises:
        ValueError: If `magnitude` is unknown, only one of `values` and `known` is there, or `mask` leaves a query no
            key.
    """
    _check(magnitude, mask, values, known)
    dtype = q.dtype
    with without_autocast(q):
        q, k, v = widened(q), widened(k), widened(v)

        def parts() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
            return _factors(q, k, v, precision, value_precision, magnitude, bias, mask, start, (q_pos, k_pos, v_pos))

        for _ in range(key_iters):
            weights = _softmax(*parts())
            k = _moved(k, weights.mT @ q, weights.sum(-2).unsqueeze(-1), precision, key_prior)
        if values is not None and known is not None and value_iters:
            flags = torch.broadcast_to(known.to(q.dtype), q.shape[:3]).unsqueeze(-1)
            given = torch.cat((flags * widened(values), flags), -1)
            some = flags.amax((1, 2, 3), keepdim=True) > 0
            changes = start is not None or magnitude == "both"  # do the weights depend on the values?
            pulled = _softmax(*parts()).mT @ given
            for step in range(value_iters):
                if step and changes:
                    pulled = _softmax(*parts()).mT @ given
                moved = _moved(v, pulled[..., :-1], pulled[..., -1:], value_precision, value_prior)
                v = torch.where(some, moved, v)
        left, right, extra = parts()
        if v_pos is None:
            out = softmax_attention(left, right, v, mask=extra, scale=1.0, dropout_p=dropout_p)
        else:
            weights = torch.dropout(_softmax(left, right, extra), dropout_p, dropout_p > 0)
            places = torch.einsum("bhij,ije->bhie", weights, widened(v_pos))
            out = torch.cat((weights @ v, places), -1)
    return out.to(dtype)


def mixture_weights(
    q: torch.Tensor,
    k: torch.Tensor,
    precision: Precision,
    *,
    magnitude: str = "none",
    bias: torch.Tensor | None = None,
    key_iters: int = 0,
    key_prior: float | None = None,
) -> torch.Tensor:
    """The weights of all pairs, `(B, heads, N, M)`, which `mixture_attention` of these arguments applies."""
    count = k.size(2)
    values = torch.eye(count, dtype=q.dtype, device=q.device).expand(*k.shape[:2], -1, -1)
    return mixture_attention(
        q, k, values, precision, magnitude=magnitude, bias=bias, key_iters=key_iters, key_prior=key_prior
    )


def _factors(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    precision: Precision,
    value_precision: Precision,
    magnitude: str,
    bias: torch.Tensor | None,
    mask: torch.Tensor | None,
    start: torch.Tensor | None,
    positions: tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """The factors of the scores: the product of the first two, plus the third."""
    q_pos, k_pos, v_pos = positions
    a, b = _column(precision), _column(value_precision)
    rows, columns = [q], [a * k]
    terms = [] if bias is None else [bias]
    if isinstance(a, torch.Tensor):  # or this is the same for all keys
        rows.append(_square(q))
        columns.append((a * (-0.5 if q_pos is None else -1.0)).expand_as(k[..., :1]))
    if magnitude == "none":
        terms.append((a * _square(k) * (-0.5 if k_pos is None else -1.0)).mT)
    for side, place, of in ((q, q_pos, "bhid,ijd->bhij"), (k, k_pos, "bhjd,ijd->bhij")):
        if place is not None:
            products = torch.einsum(of, side, widened(place))
            if magnitude == "none":
                products = products - widened(place).square().sum(-1) / 2
            terms.append(products * (a.mT if isinstance(a, torch.Tensor) else a))
    if start is not None:
        start = widened(start)
        rows.append(start)
        columns.append(b * v)
        terms.append((b * _square(v) / -2).mT)
        if isinstance(b, torch.Tensor):
            rows.append(_square(start))
            columns.append((b / -2).expand_as(v[..., :1]))
    if magnitude == "both":
        lengths = _square(v).mT if v_pos is None else _square(v.unsqueeze(2) + widened(v_pos)).squeeze(-1)
        terms.append(lengths * ((b.mT if isinstance(b, torch.Tensor) else b) / 2))
    if mask is not None:
        terms.append(mask.to(q.dtype).log())
    extra = None
    for term in terms:
        extra = term.to(q.dtype) if extra is None else extra + term
    return _joined(rows), _joined(columns), extra


def _softmax(left: torch.Tensor, right: torch.Tensor, extra: torch.Tensor | None) -> torch.Tensor:
    scores = left @ right.mT
    return (scores if extra is None else scores + extra).softmax(-1)


def _moved(
    means: torch.Tensor, total: torch.Tensor, mass: torch.Tensor, precision: Precision, prior: float | None
) -> torch.Tensor:
    """The updated means, given the sum and mass of observations and their prior."""
    if prior is None:
        return total / (mass + _TINY)
    a = _column(precision)
    return (prior * means + a * total) / (prior + a * mass)


def _column(precision: Precision) -> Any:
    """A precision as factors of keys, `(B, heads, M, 1)`, or one number for all."""
    if isinstance(precision, torch.Tensor):
        return widened(precision).unsqueeze(-1)
    return precision


def _square(x: torch.Tensor) -> torch.Tensor:
    return x.square().sum(-1, keepdim=True)


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def _check(magnitude: str, mask: torch.Tensor | None, values: torch.Tensor | None, known: torch.Tensor | None) -> None:
    if magnitude not in ("none", "keys", "both"):
        raise ValueError(f"magnitude must be one of none, keys, both, got {magnitude!r}")
    if (values is None) != (known is None):
        there, missing = ("values", "known") if known is None else ("known", "values")
        raise ValueError(f"values and known must come together, got {there} without {missing}")
    if mask is not None and not needs_formula() and mask.device.type != "meta" and not (mask != 0).any(-1).all():
        raise ValueError("mask must leave every query a key, got a row without one")
