"""Rank-augmented linear attention that saves little but its arguments for the backward pass.

The features are made again, a few images at a time so that they stay in the cache.
"""

from collections.abc import Iterator
from typing import Any

import torch

from ._chunks import NUMBERS
from ._function import EagerFunction, Tensors
from ._opaque import opaque
from .linear_attention import EPS, heads, multiply

__all__ = ["RankAugmented", "opaque_rank_augmented"]


class RankAugmented(EagerFunction):
    """Returns, besides the result: mean key times value, mean key, key weights, and mean query."""

    @staticmethod
    def compute(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, num_heads: int
    ) -> tuple[torch.Tensor, ...]:
        count, side = q.size(1), q.size(2) // num_heads
        rotation = torch.complex(cos, sin).unsqueeze(1)
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        kv, mean = (q.new_empty(len(q), num_heads, side, width) for width in (side, 1))
        weights, mean_query = q.new_empty(len(q), num_heads, count, 1), q.new_empty(len(q), num_heads, 1, side)
        for images, (features, key_features, spare) in _runs(q):
            _features(q[images], features, spare)
            _features(k[images], key_features, spare)
            queries, keys, spare = (heads(t, num_heads) for t in (features, key_features, spare))
            torch.mean(queries, 2, keepdim=True, out=mean_query[images])
            scores = torch.mul(keys, mean_query[images], out=spare).sum(-1, keepdim=True).mul_(side**-0.5)
            torch.mul(scores.softmax(2), count, out=weights[images])
            keys *= weights[images]
            mean[images] = keys.mean(2).unsqueeze(3)
            _rotate(key_features, rotation)
            torch.mul(keys.mT @ heads(v[images], num_heads), 1 / count, out=kv[images])
            z = _normaliser(queries, mean[images], spare)
            _rotate(features, rotation)
            queries *= z
            multiply(queries, kv[images], heads(out[images], num_heads))
        return out, kv, mean, weights, mean_query

    @staticmethod
    def gradients(ctx: Any, grad: torch.Tensor) -> Tensors:
        return *_gradients(grad, *ctx.saved_tensors), None, None


def _gradients(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    kv: torch.Tensor,
    mean: torch.Tensor,
    weights: torch.Tensor,
    mean_query: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Those of queries, keys and values; the angles are given."""
    count, side = q.size(1), 2 * cos.size(1)
    num_heads = q.size(2) // side
    rotation = torch.complex(cos, sin).unsqueeze(1)
    back = torch.complex(cos, -sin).unsqueeze(1)
    q_grad, k_grad, v_grad = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (q, k, v))
    for images, (features, key_features, room) in _runs(q):
        _features(q[images], features, room)
        _features(k[images], key_features, room)
        queries, keys, spare = (heads(t, num_heads) for t in (features, key_features, room))
        some_mean, some_weights, some_grad = mean[images], weights[images], heads(grad[images], num_heads)
        # The result is r kv z of the turned queries r: first r, then z.
        z = _normaliser(queries, some_mean, spare)
        target, keys_target = (heads(t[images], num_heads) for t in (q_grad, k_grad))
        multiply(some_grad, kv[images].mT, target)
        room.copy_(features)
        _rotate(room, rotation)
        # There is room for the products with the queries where the gradient of the keys will be.
        from_z = torch.mul(spare, target, out=keys_target).sum(-1, keepdim=True).mul_(z).mul_(z)
        kv_grad = (spare.mT @ torch.mul(some_grad, z, out=keys_target)).div_(count)
        target *= z
        _rotate(q_grad[images], back)
        target.addcmul_(from_z, some_mean.mT, value=-1)
        mean_grad = torch.mul(queries, from_z, out=spare).sum(2, keepdim=True).div_(-count)
        # The values and the weighted keys.
        torch.mul(keys, some_weights, out=spare)
        _rotate(room, rotation)
        multiply(spare, kv_grad, heads(v_grad[images], num_heads))
        multiply(heads(v[images], num_heads), kv_grad.mT, keys_target)
        _rotate(k_grad[images], back)
        keys_target += mean_grad
        # The weights, a softmax times the number of keys, of the keys' product with the mean query.
        weight_grad = torch.mul(keys_target, keys, out=spare).sum(-1, keepdim=True)
        weight_grad -= (weight_grad * some_weights).mean(2, keepdim=True)
        score_grad = weight_grad.mul_(some_weights).mul_(side**-0.5)
        keys_target.mul_(some_weights).addcmul_(score_grad, mean_query[images])
        target += torch.mul(keys, score_grad, out=spare).sum(2, keepdim=True).div_(count)
        # The slope of elu + 1 is its value where that is below 1.
        q_grad[images].mul_(features.clamp_max_(1))
        k_grad[images].mul_(key_features.clamp_max_(1))
    return q_grad, k_grad, v_grad


def _runs(t: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """Chunks of images of `(B, N, C)`, and buffers for three maps of each, since allocation costs as much as a pass."""
    images = min(len(t), max(1, NUMBERS // (t.size(1) * t.size(2))))
    room = t.new_empty(3, images, t.size(1), t.size(2))
    for image in range(0, len(t), images):
        yield slice(image, image + images), room[:, : len(t) - image]


def _features(t: torch.Tensor, out: torch.Tensor, spare: torch.Tensor) -> None:
    """elu + 1; PyTorch's elu takes ten times as long as an exponential."""
    torch.clamp_min(t, 0, out=spare)
    torch.sub(t, spare, out=out).exp_().add_(spare)


def _normaliser(queries: torch.Tensor, mean: torch.Tensor, spare: torch.Tensor) -> torch.Tensor:
    """One over the sums of the weights of each query, `(B, heads, N, 1)`."""
    return torch.mul(queries, mean.mT, out=spare).sum(-1, keepdim=True).add_(EPS).reciprocal_()


def _rotate(t: torch.Tensor, rotation: torch.Tensor) -> None:
    """Rotates pairs of channels of `(B, N, C)` in place, every head by the same `(N, 1, C / heads / 2)`."""
    pairs = torch.view_as_complex(t.unflatten(2, (-1, rotation.size(2), 2)))
    pairs *= rotation


Five = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def _compute(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> Five:
    out, kv, mean, weights, mean_query = RankAugmented.compute(q, k, v, cos, sin, q.size(2) // (2 * cos.size(1)))
    return out, kv, mean, weights, mean_query


def _results_like(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> Five:
    side = 2 * cos.size(1)
    count, num_heads = q.size(1), q.size(2) // side
    sizes = (side, side), (side, 1), (count, 1), (1, side)
    kv, mean, weights, mean_query = (q.new_empty(q.size(0), num_heads, *size) for size in sizes)
    return q.new_empty(q.shape), kv, mean, weights, mean_query


opaque_rank_augmented = opaque("rank_augmented_attention", _compute, _results_like, _gradients)
