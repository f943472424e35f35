"""Rank-augmented linear attention that keeps little but its arguments for the backward pass.

The features are made again, a few images at a time so that they stay in the cache.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import functional as F

from ._function import EagerFunction, Tensors
from .linear_attention import heads, multiply, normaliser

__all__ = ["RankAugmented"]

# Numbers in the images that are worked on at a time: 1 MB in float32.
_CHUNK = 2**18


class RankAugmented(EagerFunction):
    """Gives, besides the result: mean key times value, mean key, weights of the keys, and mean query."""

    @staticmethod
    def compute(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, num_heads: int
    ) -> tuple[torch.Tensor, ...]:
        count, side = q.size(1), q.size(2) // num_heads
        rotation = torch.complex(cos, sin).unsqueeze(1)
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        kv, mean = (q.new_empty(len(q), num_heads, side, width) for width in (side, 1))
        weights, mean_query = q.new_empty(len(q), num_heads, count, 1), q.new_empty(len(q), num_heads, 1, side)
        for images in _runs(q):
            features, key_features = _features(q[images]), _features(k[images])
            queries, keys = heads(features, num_heads), heads(key_features, num_heads)
            torch.mean(queries, 2, keepdim=True, out=mean_query[images])
            scores = (keys * mean_query[images]).sum(-1, keepdim=True).mul_(side**-0.5)
            torch.mul(scores.softmax(2), count, out=weights[images])
            keys *= weights[images]
            mean[images] = keys.mean(2).unsqueeze(3)
            _rotate(key_features, rotation)
            torch.mul(keys.mT @ heads(v[images], num_heads), 1 / count, out=kv[images])
            queries *= normaliser(queries, mean[images])
            _rotate(features, rotation)
            multiply(queries, kv[images], heads(out[images], num_heads))
        return out, kv, mean, weights, mean_query

    @staticmethod
    def gradients(ctx: Any, grad: torch.Tensor) -> Tensors:
        q, k, v, cos, sin, kv, mean, weights, mean_query = ctx.saved_tensors
        (num_heads,) = ctx.settings
        count, side = q.size(1), q.size(2) // num_heads
        rotation = torch.complex(cos, sin).unsqueeze(1)
        back = torch.complex(cos, -sin).unsqueeze(1)
        q_grad, k_grad, v_grad = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (q, k, v))
        for images in _runs(q):
            features, key_features = _features(q[images]), _features(k[images])
            queries, keys = heads(features, num_heads), heads(key_features, num_heads)
            some_mean, some_weights, some_grad = mean[images], weights[images], heads(grad[images], num_heads)
            # The result is r kv z of the turned queries r: first r, then z.
            z = normaliser(queries, some_mean)
            space = _rotate(features.clone(), rotation)
            turned = heads(space, num_heads)
            target = heads(q_grad[images], num_heads)
            multiply(some_grad, kv[images].mT, target)
            from_z = (turned * target).sum(-1, keepdim=True).mul_(z).mul_(z)
            target *= z
            _rotate(q_grad[images], back)
            target.addcmul_(from_z, some_mean.mT, value=-1)
            kv_grad = (turned.mT @ (some_grad * z)).div_(count)
            mean_grad = (queries * from_z).sum(2, keepdim=True).div_(-count)
            # The values and the weighted keys.
            torch.mul(keys, some_weights, out=turned)
            _rotate(space, rotation)
            multiply(turned, kv_grad, heads(v_grad[images], num_heads))
            target = heads(k_grad[images], num_heads)
            multiply(heads(v[images], num_heads), kv_grad.mT, target)
            _rotate(k_grad[images], back)
            target += mean_grad
            # The weights, a softmax times the number of keys, of the keys' product with the mean query.
            weight_grad = (target * keys).sum(-1, keepdim=True)
            weight_grad -= (weight_grad * some_weights).mean(2, keepdim=True)
            score_grad = weight_grad.mul_(some_weights).mul_(side**-0.5)
            target.mul_(some_weights).addcmul_(score_grad, mean_query[images])
            target = heads(q_grad[images], num_heads)
            target += (score_grad * keys).sum(2, keepdim=True).div_(count)
            # The slope of elu + 1 is its value where that is below 1.
            q_grad[images].mul_(features.clamp_max_(1))
            k_grad[images].mul_(key_features.clamp_max_(1))
        return q_grad, k_grad, v_grad, None, None


def _runs(t: torch.Tensor) -> Iterator[slice]:
    """Runs of images of `(B, N, C)`."""
    images = max(1, _CHUNK // (t.size(1) * t.size(2)))
    for image in range(0, len(t), images):
        yield slice(image, image + images)


def _features(t: torch.Tensor) -> torch.Tensor:
    return F.elu(t).contiguous().add_(1)


def _rotate(t: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    """Turns pairs of channels of `(B, N, C)` in place, in every head by the same `(N, 1, C / heads / 2)`."""
    pairs = torch.view_as_complex(t.unflatten(2, (-1, rotation.size(2), 2)))
    pairs *= rotation
    return t
