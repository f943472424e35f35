"""Focused linear attention that saves little but its arguments for the backward pass.

The features are made again, a part of the images at a time so that they stay in the cache.
"""

from typing import Any, NamedTuple

import torch

from ._chunks import chunks
from ._function import EagerFunction, Tensors

__all__ = ["EPS", "LinearAttention", "heads", "multiply", "normaliser"]

EPS = 1e-6
# Numbers in an image from which on products take one at a time: the heads of several are copied for a common product.
_SMALL = 2**14


class LinearAttention(EagerFunction):
    """Returns two means over the keys besides the result."""

    @staticmethod
    def compute(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        positions: torch.Tensor,
        factor: torch.Tensor,
        num_heads: int,
        power: int,
    ) -> tuple[torch.Tensor, ...]:
        out = torch.empty_like(q)
        kv, mean = _zero_means(q, num_heads)
        for images, rows in chunks(k):
            keys = heads(_features(k[images, rows] + positions[rows], factor, power), num_heads)
            _add_product(keys.mT, heads(v[images, rows], num_heads), kv[images])
            mean[images] += keys.sum(2).unsqueeze(3)
        kv, mean = kv.div_(k.size(1)), mean.div_(k.size(1))
        for images, rows in chunks(q):
            queries = heads(_features(q[images, rows], factor, power), num_heads)
            queries *= normaliser(queries, mean[images])
            multiply(queries, kv[images], heads(out[images, rows], num_heads))
        return out, kv, mean

    @staticmethod
    def gradients(ctx: Any, grad: torch.Tensor) -> Tensors:
        q, k, v, positions, factor, kv, mean = ctx.saved_tensors
        num_heads, power = ctx.settings
        q_grad, k_grad, v_grad = (torch.empty_like(part) for part in (q, k, v))
        kv_grad, mean_grad = _zero_means(q, num_heads)
        factor_grad = torch.zeros_like(factor)
        for at in chunks(q, share=2):
            focused = _focus_by_hand(q[at], factor, power)
            queries, some_grad, target = (heads(t, num_heads) for t in (focused.features, grad[at], q_grad[at]))
            z = normaliser(queries, mean[at[0]])
            multiply(some_grad, kv[at[0]].mT, target)
            # The product of the result with its gradient, which z passes on, is that of the queries with theirs.
            from_z = (queries * target).sum(-1, keepdim=True) * z.square()
            target.mul_(z).addcmul_(from_z, mean[at[0]].mT, value=-1)
            _add_product(queries.mT, some_grad * z, kv_grad[at[0]])
            mean_grad[at[0]] -= (queries * from_z).sum(2).unsqueeze(3)
            factor_grad += _focus_backward(q_grad[at], q[at], factor, focused, power)
        kv_grad, mean_grad = kv_grad.div_(k.size(1)), mean_grad.div_(k.size(1))
        for at in chunks(k, share=2):
            some_k = k[at] + positions[at[1]]
            focused = _focus_by_hand(some_k, factor, power)
            multiply(heads(focused.features, num_heads), kv_grad[at[0]], heads(v_grad[at], num_heads))
            target = heads(k_grad[at], num_heads)
            multiply(heads(v[at], num_heads), kv_grad[at[0]].mT, target)
            target += mean_grad[at[0]].mT
            factor_grad += _focus_backward(k_grad[at], some_k, factor, focused, power)
        # The formula is one input before the tensors.
        positions_grad = k_grad.sum(0) if ctx.needs_input_grad[4] else None
        return q_grad, k_grad, v_grad, positions_grad, factor_grad


def heads(t: torch.Tensor, num_heads: int) -> torch.Tensor:
    """A view `(B, H, N, C // H)` of `(B, N, C)`."""
    return t.unflatten(2, (num_heads, -1)).transpose(1, 2)


def normaliser(queries: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """One over the sums of the weights of each query, `(B, H, N, 1)`."""
    # BLAS is slow with single columns.
    return ((queries * mean.mT).sum(-1, keepdim=True) + EPS).reciprocal()


class _Focused(NamedTuple):
    """Features and their intermediate results: `(B, N, C)`, and `(B, N, 1)` for the norms."""

    features: torch.Tensor
    direction: torch.Tensor
    length: torch.Tensor
    power_length: torch.Tensor


def _zero_means(t: torch.Tensor, num_heads: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Buffers for the means of key times value, `(B, H, D, D)`, and key, `(B, H, D, 1)`."""
    side = t.size(2) // num_heads
    return t.new_zeros(len(t), num_heads, side, side), t.new_zeros(len(t), num_heads, side, 1)


def multiply(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
    """`out = a @ b` of `(B, H, N, D)`."""
    if a[0].numel() < _SMALL:
        out.copy_(a @ b)
        return
    for some_a, some_b, some_out in zip(a, b, out, strict=True):
        torch.bmm(some_a, some_b, out=some_out)


def _add_product(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
    """`out += a @ b` of `(B, H, D, N)`."""
    if a[0].numel() < _SMALL:
        out += a @ b
        return
    for some_a, some_b, some_out in zip(a, b, out, strict=True):
        some_out.baddbmm_(some_a, some_b)


def _features(t: torch.Tensor, factor: torch.Tensor, power: int) -> torch.Tensor:
    """The features alone, with minimal memory."""
    features, length = _direction(t, factor)
    features = features.pow_(power) if power < 4 else _power(features, power)
    return features.mul_(length / torch.linalg.vector_norm(features, dim=-1, keepdim=True))


def _focus_by_hand(t: torch.Tensor, factor: torch.Tensor, power: int) -> _Focused:
    direction, length = _direction(t, factor)
    features = _power(direction, power)
    power_length = torch.linalg.vector_norm(features, dim=-1, keepdim=True)
    features *= length / power_length
    return _Focused(features, direction, length, power_length)


def _direction(t: torch.Tensor, factor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`y / |y|` and `|y|`."""
    y = t.clamp_min(0)
    torch.addcmul(EPS * factor, y, factor, out=y)
    length = torch.linalg.vector_norm(y, dim=-1, keepdim=True)
    return y.div_(length), length


def _power(t: torch.Tensor, power: int) -> torch.Tensor:
    # PyTorch's `pow` takes one pass up to the third power; beyond, it is slow.
    return _times_power(t.pow(min(power, 3)), t, power - 3)


def _focus_backward(
    grad: torch.Tensor, t: torch.Tensor, factor: torch.Tensor, focused: _Focused, power: int
) -> torch.Tensor:
    """Converts the gradient of the features to that of t, in place, and returns that of the factor."""
    features, direction, length, power_length = focused
    along = (grad * features).sum(-1, keepdim=True) / length
    grad.addcmul_(features, along / length, value=-1)
    _times_power(grad, direction, power - 1)
    grad.mul_(power / power_length).addcmul_(direction, along)
    factor_grad = (grad * direction * length).sum((0, 1)) / factor
    grad.mul_(factor).mul_(t > 0)
    return factor_grad


def _times_power(target: torch.Tensor, t: torch.Tensor, power: int) -> torch.Tensor:
    for _ in range(power):
        target *= t
    return target
