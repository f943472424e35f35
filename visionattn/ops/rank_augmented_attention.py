"""Linear attention with a higher-rank summary of the map: keys are weighted by their attention from the mean query."""

import torch
from torch.nn import functional as F

from visionattn.utils.factory import FactoryKwargs

from ._autocast import wide, without_autocast
from ._modes import calls_eager_kernel, use_eager_kernel
from .eager.linear_attention import heads, normaliser
from .eager.rank_augmented_attention import RankAugmented, opaque_rank_augmented

__all__ = ["augmented_features", "formula", "rank_augmented_attention", "rotate_pairs", "rotation_tables"]

# The lowest frequency of the rotations is one over this.
_BASE = 10000.0


def rank_augmented_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, num_heads: int
) -> torch.Tensor:
    """Means of the values with weights `f(q) f(k)`, f = elu + 1, rotated by position. `3 x (B, N, C) -> (B, N, C)`.

    Keys count by the softmax of their product with the mean query. The sum of the weights leaves the rotation out, so
    they need not sum to one. Half precision is computed in float32, under autocast too.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        cos: Of the angle of each pair of channels at each position, `(N, C / num_heads / 2)`: see `rotation_tables`.
        sin: The same.
        num_heads: Divides C.
    """
    with without_autocast(q):
        if use_eager_kernel(q):
            out: torch.Tensor = RankAugmented.apply(formula, q, k, v, cos, sin, num_heads)[0]
            return out
        if calls_eager_kernel(q):
            out = opaque_rank_augmented(*(t.contiguous() for t in (q, k, v)), cos, sin)[0]
            return out
        return formula(q.to(wide(q)), k.to(wide(k)), v.to(wide(v)), cos, sin, num_heads).to(v.dtype)


def rotation_tables(
    grid: tuple[int, int], head_dim: int, *, prefix: int = 0, like: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of the angles of the positions of a map, `(prefix + H * W, head_dim / 2)` each.

    The first half of the pairs turns with the row, the second with the column, in float32 or wider.

    Args:
        grid: `(H, W)`.
        head_dim: Width of a head, a multiple of 4.
        prefix: Number of extra tokens in front, which are not turned.
        like: A tensor whose device and precision they are for.
    """
    given: FactoryKwargs = {"device": like.device, "dtype": wide(like)}
    frequencies = _BASE ** -torch.linspace(0, 1, head_dim // 4, **given)
    rows, columns = (torch.arange(side, **given).unsqueeze(1) * frequencies for side in grid)
    shape = (*grid, head_dim // 4)
    angles = torch.cat((rows.unsqueeze(1).expand(shape), columns.unsqueeze(0).expand(shape)), -1).flatten(0, 1)
    if prefix:
        angles = F.pad(angles, (0, 0, prefix, 0))
    return angles.cos(), angles.sin()


def rotate_pairs(t: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates channels 2i and 2i + 1 of `(..., N, D)` by the angles of `(N, D / 2)`."""
    first, second = t.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((first * cos - second * sin, second * cos + first * sin), -1).flatten(-2)


def augmented_features(
    q: torch.Tensor, k: torch.Tensor, num_heads: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features of queries and weighted keys, `(B, heads, N, D)`, and one over each query's sum, `(B, heads, N, 1)`."""
    queries, keys = (heads(F.elu(t) + 1, num_heads) for t in (q, k))
    scores = (keys * queries.mean(2, keepdim=True)).sum(-1, keepdim=True) * keys.size(3) ** -0.5
    keys = keys * (scores.softmax(2) * keys.size(2))
    return queries, keys, normaliser(queries, keys.mean(2).unsqueeze(3))


def formula(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, num_heads: int
) -> torch.Tensor:
    """The formula of `rank_augmented_attention`, for tensors of one dtype."""
    queries, keys, z = augmented_features(q, k, num_heads)
    kv = (rotate_pairs(keys, cos, sin) / keys.size(2)).mT @ heads(v, num_heads)
    return (rotate_pairs(queries, cos, sin) @ kv * z).transpose(1, 2).flatten(2)
