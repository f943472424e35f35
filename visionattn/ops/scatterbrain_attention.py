"""Exact weights nearby, random features elsewhere (Scatterbrain, NeurIPS 2021, arXiv 2110.15343).

The weight of a key is exp(s q k) where it is in the support of the query and phi(q) phi(k) elsewhere, with random
features phi whose product is exp(s q k) on average. Sums over all keys are made of the features once for all queries;
for keys in the support the product of the features is taken off again and the exact weight put in its place.
"""

from math import log

import torch
from torch.nn import functional as F

from ._autocast import wide, without_autocast
from .attention import softmax_attention
from .exact_pairs import Clusters, Round, Support
from .masked_attention import token_rows

__all__ = ["features", "scatterbrain_attention"]

# The least sum of weights, relative to the largest term: rounding may take away what is left of the features.
_LEAST = 1e-6
# The least sum of features, whose inverse float32 can hold.
_SMALLEST = 1e-30


def scatterbrain_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    projection: torch.Tensor,
    support: Support,
    *,
    prefix: int = 0,
    cosh: bool = True,
    softmax_eps: float = 0.0,
    scale: float | None = None,
    dropout_p: float = 0.0,
) -> torch.Tensor:
    """Means of the values with exact weights in the support and weights of features elsewhere.

    `3 x (B, heads, N, d) -> (B, N, heads * d)`. The gradient is that of the weights; the support takes none. A support
    that covers everything gives softmax attention.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        projection: Directions of the features, `(features / 2, d)` with `cosh`, `(features, d)` without.
        support: For which pairs weights are exact, extra tokens not counted.
        prefix: Number of extra tokens in front, all of whose weights are exact, as queries and as keys.
        cosh: Whether each direction serves for two features, of both signs.
        softmax_eps: Added to each feature, relative to the largest.
        scale: Of the scores; none is `d ** -0.5`.
        dropout_p: Probability of dropping an exact weight: of clusters, its difference from the weight of features.
    """
    batch, heads, tokens, dim = q.shape
    if support.covers(tokens - prefix):
        out = softmax_attention(q, k, v, scale=scale, dropout_p=dropout_p)
    else:
        scale = dim**-0.5 if scale is None else scale
        exact = wide(q)
        with without_autocast(q):
            patches, keys, values, directions = (x.to(exact) for x in (q[:, :, prefix:], k, v, projection))
            settings = (support, prefix, cosh, softmax_eps, scale, dropout_p)
            out = _attend(patches, keys, values, directions, *settings).to(q.dtype)
        if prefix:
            front = softmax_attention(q[:, :, :prefix], k, v, scale=scale, dropout_p=dropout_p)
            out = torch.cat([front, out], 2)
    out = out.transpose(1, 2)
    if torch.compiler.is_exporting():
        out = out.clone(memory_format=torch.contiguous_format)
    return out.reshape(batch, tokens, heads * dim)


def features(
    q: torch.Tensor, k: torch.Tensor, projection: torch.Tensor, cosh: bool, softmax_eps: float, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features of queries and keys, and the logarithm of the factor missing in their products, `(B, heads, N, 1)`."""
    u, w = (scale**0.5 * x @ projection.mT for x in (q, k))
    if cosh:
        u, w = torch.cat([u, -u], -1), torch.cat([w, -w], -1)
    count = u.size(-1)
    q_half, k_half = (x.square().sum(-1, keepdim=True) * (scale / 2) for x in (q, k))
    w = w - k_half
    q_most, k_most = u.amax(-1, keepdim=True), w.amax((-2, -1), keepdim=True)
    if not softmax_eps:  # then it does not matter what is taken out
        q_most, k_most = q_most.detach(), k_most.detach()
    u, w = (u - q_most).exp(), (w - k_most).exp()
    if softmax_eps:
        u, w = u + softmax_eps * q_half.exp(), w + softmax_eps
    return u, w, q_most - q_half + k_most - log(count)


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    projection: torch.Tensor,
    support: Support,
    prefix: int,
    cosh: bool,
    softmax_eps: float,
    scale: float,
    dropout_p: float,
) -> torch.Tensor:
    tokens = q.size(2)
    k_all, k, v_all, v = k, k[:, :, prefix:], v, v[:, :, prefix:]
    phi_q, phi_k, level = features(q, k, projection, cosh, softmax_eps, scale)
    rounds = support.rounds(tokens, q.device)
    groups = support.groups() if isinstance(support, Clusters) and len(rounds) > 1 else None
    front = q @ k_all[:, :, :prefix].mT * scale
    scored = [_scores(q, k, phi_q, phi_k, one, scale, groups) for one in rounds]
    total = phi_q @ (phi_k.mT @ torch.cat([v, torch.ones_like(v[..., :1])], -1))
    # Weights are taken relative to the largest term of their sum, which changes no result, nor its gradient.
    best = (level + total[..., -1:].clamp_min(_SMALLEST).log()).detach()
    for scores, _, place in scored:
        best = torch.maximum(best, _back(scores.detach().amax(-1, keepdim=True), place))
    if prefix:
        best = torch.maximum(best, front.detach().amax(-1, keepdim=True))
    lift = (level - best).exp()
    total = total * lift
    if prefix:
        weights = (front - best).exp()
        total = total + _weigh(weights, F.dropout(weights, dropout_p), v_all[:, :, :prefix])
    for one, (scores, product, place) in zip(rounds, scored, strict=True):
        rows, columns = (x.clamp_max(tokens - 1) for x in (one.rows, one.columns))
        weights = (scores - _take(best, rows)).exp()
        less = product * _take(lift, rows)
        if dropout_p == 0:
            kept = weights - less
        elif isinstance(support, Clusters):
            kept = F.dropout(weights - less, dropout_p)
        else:
            kept = F.dropout(weights, dropout_p) - less
        total = total + _back(_weigh(weights - less, kept, _take(v, columns)), place)
    return total[..., :-1] / total[..., -1:].clamp_min(_LEAST)


def _weigh(weights: torch.Tensor, kept: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Sums of the values with the weights after dropout, and of all weights at the end."""
    return torch.cat([kept @ v, weights.sum(-1, keepdim=True)], -1)


def _scores(
    q: torch.Tensor,
    k: torch.Tensor,
    phi_q: torch.Tensor,
    phi_k: torch.Tensor,
    one: Round,
    scale: float,
    groups: tuple[torch.Tensor, torch.Tensor] | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores of the pairs of a round, products of their features, and where the result of each query is.

    What is seen in several rounds counts a part in each.
    """
    tokens = q.size(2)
    rows, columns = (x.clamp_max(tokens - 1) for x in (one.rows, one.columns))
    scores = _take(q, rows) @ _take(k, columns).mT * scale
    product = _take(phi_q, rows) @ _take(phi_k, columns).mT
    if groups is not None:
        same = [_pick(g, rows).unsqueeze(-1) == _pick(h, columns).unsqueeze(-2) for g, h in zip(*groups, strict=True)]
        count = torch.stack(same).sum(0).clamp_min(1).to(q.dtype)
        scores, product = scores - count.log(), product / count
    # Empty rows see nothing: they have no largest score of their own, and weights could overflow.
    seen = (one.columns < tokens).unsqueeze(-2) & (one.rows < tokens).unsqueeze(-1)
    seen = seen if one.mask is None else seen & one.mask
    place = one.rows.flatten(-2).argsort(-1)[..., :tokens].expand(q.size(0), q.size(1), -1)
    return scores.masked_fill(~seen, float("-inf")), product.masked_fill(~seen, 0), place


def _pick(group: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
    """Entries by their numbers, `(B, heads, N), (B, heads, groups, n) -> (B, heads, groups, n)`."""
    return group.gather(-1, number.flatten(-2)).view(number.shape)


def _take(x: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
    """Tokens by their numbers, `(B, heads, N, d) -> (B, heads, groups, n, d)`."""
    return token_rows(x, number.expand(x.size(0), x.size(1), -1, -1))


def _back(x: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """`(B, heads, groups, m, c) -> (B, heads, N, c)`."""
    return token_rows(x.flatten(2, 3), place)
