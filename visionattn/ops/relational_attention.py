"""Relational attention: attention to tokens and to relations with them (arXiv 2405.16727)."""

from collections.abc import Callable

import torch
from torch.nn import functional as F

from ._modes import is_exporting
from .attention import softmax_attention
from .query_tiles import in_tiles

__all__ = ["RELATIONS", "relational_attention"]

# Activations of relations.
RELATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "identity": lambda x: x,
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "gelu": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "softmax": lambda x: x.softmax(-1),
}
# Weights and relations of an image that are held at a time, in numbers.
_HELD = 1 << 22
# Up to so many of a batch relations are formed although nothing is done to them, which is quicker.
_FEW = 1 << 22


def relational_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    q_rel: torch.Tensor,
    k_rel: torch.Tensor,
    *,
    activation: str = "identity",
    mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Means over the keys of the values and of the relations. `-> (B, heads, N, d), (B, heads, N, R)`.

    The weights are the softmax of `q k / sqrt(d)`, the R relations of a query and a key `act(q_rel k_rel / sqrt(p))`.
    Nothing of the size of all relations of many tokens is held: without an activation the mean of the relations is the
    relation to the mean of `k_rel`, and plain attention gives that; otherwise some queries at a time meet all keys.

    Args:
        q: Queries, `(B, heads, N, d)`.
        k: Keys, `(B, heads, M, d)`.
        v: Values, `(B, heads, M, d)`; or for distances, `(heads, 2 D + 1, d)`: that of key j for query i is in row
            `j - i + D`, where distances beyond D count as D.
        q_rel: Queries of the relations, `(B, R, N, p)`.
        k_rel: Keys of the relations, `(B, R, M, p)`.
        activation: Of the relations, a key of `RELATIONS`; `softmax` is over the keys.
        mask: Added to the scores, or False where a key is not seen; broadcasts to `(B, heads, N, M)`.
        dropout_p: Probability of dropping a weight.
    """
    pairs = q.size(0) * (q.size(1) + q_rel.size(1)) * q.size(2) * k.size(2)
    if activation == "identity" and v.ndim == 4 and (is_exporting() or pairs > _FEW):
        return _without_relations(q, k, v, q_rel, k_rel, mask, dropout_p)

    def some_queries(some: slice, q: torch.Tensor, q_rel: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        own = mask if mask is None or mask.ndim < 2 or mask.size(-2) == 1 else mask[..., some, :]
        return _some_queries(q, k, v, q_rel, k_rel, own, activation, some.start, dropout_p)

    numbers = (q.size(1) + q_rel.size(1)) * k.size(2)
    parts = in_tiles(some_queries, (q, q_rel), numbers, held=_HELD, random=dropout_p > 0)
    values, relations = zip(*parts, strict=True)
    return torch.cat(values, 2), torch.cat(relations, 2)


def _without_relations(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    q_rel: torch.Tensor,
    k_rel: torch.Tensor,
    mask: torch.Tensor | None,
    dropout_p: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention whose values are the symbols concatenated with the relation keys."""
    width, relations = v.size(3), k_rel.transpose(1, 2).flatten(2)
    both = torch.cat([v, relations.unsqueeze(1).expand(-1, v.size(1), -1, -1)], 3)
    # PyTorch's fused forms want all widths the same.
    q_wide, k_wide = (F.pad(t, (0, both.size(3) - width)) for t in (q, k))
    out = softmax_attention(q_wide, k_wide, both, mask=mask, scale=q.size(3) ** -0.5, dropout_p=dropout_p)
    mean = out[..., width:].unflatten(3, (q_rel.size(1), -1))
    related = (mean * q_rel.transpose(1, 2).unsqueeze(1)).sum(-1) * q_rel.size(3) ** -0.5
    return out[..., :width], related


def _some_queries(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    q_rel: torch.Tensor,
    k_rel: torch.Tensor,
    mask: torch.Tensor | None,
    activation: str,
    start: int,
    dropout_p: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both means for the queries from `start` on."""
    scores = q @ k.mT * q.size(3) ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    weights = F.dropout(scores.softmax(-1), dropout_p)
    relations = RELATIONS[activation](q_rel @ k_rel.mT * q_rel.size(3) ** -0.5)
    related = (weights.transpose(1, 2) @ relations.permute(0, 2, 3, 1)).transpose(1, 2)
    if v.ndim == 3:
        weights = _by_distance(weights, start, v.size(1) // 2)
    return weights @ v, related


def _by_distance(weights: torch.Tensor, start: int, furthest: int) -> torch.Tensor:
    """Sums of the weights of keys at the same distance. `(B, heads, n, M) -> (B, heads, n, 2 furthest + 1)`."""
    query = torch.arange(start, start + weights.size(2), device=weights.device).unsqueeze(1)
    key = torch.arange(weights.size(3), device=weights.device)
    distance = (key - query).clamp(-furthest, furthest) + furthest
    sums = weights.new_zeros(*weights.shape[:3], 2 * furthest + 1)
    return sums.scatter_add(3, distance.expand_as(weights), weights)
