"""Linear attention between features that are focused: pushed towards the nearest axes at equal length.

Written by hand for the CPU, it keeps little but its inputs for the backward pass: the features are made again, a part
of the images at a time so that they stay in the cache.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from ._autocast import without_autocast
from ._dispatch import has_kernel
from ._eager import HandWritten, differentiable_backward, use_eager_kernel
from .nhwc_conv import nhwc_conv

__all__ = ["focused_attention", "focused_features"]

_EPS = 1e-6
# Numbers in what is worked on at a time: 1 MB in float32; half of it backward, where there is more to keep in cache.
_CHUNK = 2**18
# Numbers in an image from which on products take one at a time: the heads of several are copied for a common product.
_SMALL = 2**14
# Limits of the kernels: the width of a head, the side of the convolution, and the power, each step of which is code.
_WIDEST, _LARGEST, _SHARPEST = 64, 11, 16


def focused_features(t: torch.Tensor, scale: torch.Tensor, focusing_factor: int = 3) -> torch.Tensor:
    """`|y| * y^p / |y^p|` of `y = (relu(t) + 1e-6) / softplus(scale)`, with the norms over the last axis.

    Computed and given back in float32 or wider.

    Args:
        t: `(..., C)`.
        scale: `(C,)`.
        focusing_factor: The power p, an integer of at least 1; more sharpens the direction.
    """
    return _focus(_wide(t), _factor(scale), focusing_factor)


def _refuses(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: torch.Tensor,
    positions: torch.Tensor | None = None,
    *,
    num_heads: int,
    focusing_factor: int = 3,
    quadratic: bool | None = None,
    convolution: tuple[torch.Tensor, torch.Tensor] | None = None,
    grid: tuple[int, int] | None = None,
) -> str:
    if quadratic:
        return "only the linear order has one"
    if not q.dtype == k.dtype == v.dtype:
        return f"queries, keys and values are {q.dtype}, {k.dtype} and {v.dtype}"
    if any(t.stride(2) != 1 for t in (q, k, v)):
        return "the channels of a token do not lie together"
    if q.size(2) > _WIDEST * num_heads:
        return f"heads are wider than {_WIDEST}"
    if focusing_factor > _SHARPEST:
        return f"the power is more than {_SHARPEST}"
    if convolution is not None and convolution[0].size(3) > _LARGEST:
        return f"the convolution is larger than {_LARGEST}"
    if convolution is not None and not _fits(grid, q, v):
        return "the grid does not fit"
    return ""


@has_kernel("focused_attention", _refuses)
def focused_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: torch.Tensor,
    positions: torch.Tensor | None = None,
    *,
    num_heads: int,
    focusing_factor: int = 3,
    quadratic: bool | None = None,
    convolution: tuple[torch.Tensor, torch.Tensor] | None = None,
    grid: tuple[int, int] | None = None,
) -> torch.Tensor:
    """Means of the values with weights `f(q) f(k + positions)^T` in each head; f: `focused_features` of all channels.

    `(B, N, C), (B, M, C), (B, M, C), (C,) -> (B, N, C)` in the dtype of v; half precision is computed in float32, under
    autocast too: weights reach from 1e-12 to the squared length of a token.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        scale: A number for each channel, see `focused_features`.
        positions: The same for the keys of every image, `(M, C)`.
        num_heads: Divides C.
        focusing_factor: The power, an integer of at least 1.
        quadratic: Whether to form the N x M weights; otherwise the keys meet the values first. Only the speed differs.
            None does so where it halves the multiplications, that is for N = M below half a head's width.
        convolution: Weight `(C, 1, K, K)`, K odd, and bias `(C,)` of a depthwise convolution of the values, which is
            added to the result: where there are kernels, in the same pass. N = M only.
        grid: Rows and columns of the map whose tokens the values are, for the convolution.

    Raises:
        ValueError: If there is a convolution and no grid of N = M tokens.
    """
    if convolution is not None and not _fits(grid, q, v):
        raise ValueError(
            "a convolution needs as many queries as values and their grid (rows, columns), "
            f"got {q.size(1)}, {v.size(1)} and grid={grid}"
        )
    if quadratic is None:
        quadratic = 4 * q.size(1) * k.size(1) * num_heads < (q.size(1) + k.size(1)) * q.size(2)
    if positions is None:
        positions = k.new_zeros(()).expand(k.shape[1:])
    with without_autocast(q):
        factor = _factor(scale)
        if use_eager_kernel(q) and not quadratic:
            out = _LinearAttention.apply(q, k, v, positions, factor.to(q.dtype), num_heads, focusing_factor)[0]
        else:
            wide = (_wide(part) for part in (q, k, v, positions))
            out = _plain(*wide, factor, num_heads, focusing_factor, quadratic).to(v.dtype)
    if convolution is None:
        return out
    weight, bias = convolution
    values = nhwc_conv(v.unflatten(1, grid), weight, bias, padding=weight.size(3) // 2, groups=v.size(2))
    return values.flatten(1, 2).add_(out)


def _fits(grid: tuple[int, int] | None, q: torch.Tensor, v: torch.Tensor) -> bool:
    return grid is not None and q.shape == v.shape and grid[0] * grid[1] == q.size(1)


class _LinearAttention(HandWritten):
    """Gives the result and two means over the keys, which are for the backward pass alone."""

    @staticmethod
    def forward(
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
        for images, rows in _chunks(k, _CHUNK):
            keys = _heads(_features(k[images, rows] + positions[rows], factor, power), num_heads)
            _add_product(keys.mT, _heads(v[images, rows], num_heads), kv[images])
            mean[images] += keys.sum(2).unsqueeze(3)
        kv, mean = kv.div_(k.size(1)), mean.div_(k.size(1))
        for images, rows in _chunks(q, _CHUNK):
            queries = _heads(_features(q[images, rows], factor, power), num_heads)
            queries *= _normaliser(queries, mean[images])
            _multiply(queries, kv[images], _heads(out[images, rows], num_heads))
        return out, kv, mean

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:5], *output[1:])
        ctx.mark_non_differentiable(*output[1:])
        ctx.num_heads, ctx.power = inputs[5:]

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        *inputs, kv, mean = ctx.saved_tensors
        q, k, v, positions, factor = inputs
        heads, power = ctx.num_heads, ctx.power
        if torch.is_grad_enabled():
            grads = differentiable_backward(lambda *x: (_plain(*x, heads, power, False),), inputs, (grad,))
            return *grads, None, None
        q_grad, k_grad, v_grad = (torch.empty_like(part) for part in (q, k, v))
        kv_grad, mean_grad = _zero_means(q, heads)
        factor_grad = torch.zeros_like(factor)
        for at in _chunks(q, _CHUNK // 2):
            focused = _focus_by_hand(q[at], factor, power)
            queries, some_grad, target = (_heads(t, heads) for t in (focused.features, grad[at], q_grad[at]))
            z = _normaliser(queries, mean[at[0]])
            _multiply(some_grad, kv[at[0]].mT, target)
            # The product of the result with its gradient, which z passes on, is that of the queries with theirs.
            from_z = (queries * target).sum(-1, keepdim=True) * z.square()
            target.mul_(z).addcmul_(from_z, mean[at[0]].mT, value=-1)
            _add_product(queries.mT, some_grad * z, kv_grad[at[0]])
            mean_grad[at[0]] -= (queries * from_z).sum(2).unsqueeze(3)
            factor_grad += _focus_backward(q_grad[at], q[at], factor, focused, power)
        kv_grad, mean_grad = kv_grad.div_(k.size(1)), mean_grad.div_(k.size(1))
        for at in _chunks(k, _CHUNK // 2):
            some_k = k[at] + positions[at[1]]
            focused = _focus_by_hand(some_k, factor, power)
            _multiply(_heads(focused.features, heads), kv_grad[at[0]], _heads(v_grad[at], heads))
            target = _heads(k_grad[at], heads)
            _multiply(_heads(v[at], heads), kv_grad[at[0]].mT, target)
            target += mean_grad[at[0]].mT
            factor_grad += _focus_backward(k_grad[at], some_k, factor, focused, power)
        positions_grad = k_grad.sum(0) if ctx.needs_input_grad[3] else None
        return q_grad, k_grad, v_grad, positions_grad, factor_grad, None, None


def _plain(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    positions: torch.Tensor,
    factor: torch.Tensor,
    num_heads: int,
    power: int,
    quadratic: bool,
) -> torch.Tensor:
    queries, keys = (_heads(_focus(part, factor, power), num_heads) for part in (q, k + positions))
    values = _heads(v, num_heads)
    if quadratic:
        weights = queries @ keys.mT
        out = weights @ values / (weights.sum(-1, keepdim=True) + keys.size(2) * _EPS)
    else:
        kv, mean = keys.mT @ values / keys.size(2), keys.mean(2).unsqueeze(3)
        out = queries @ kv * _normaliser(queries, mean)
    return out.transpose(1, 2).flatten(2)


def _zero_means(t: torch.Tensor, num_heads: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Room for the means of key times value, `(B, H, D, D)`, and key, `(B, H, D, 1)`."""
    side = t.size(2) // num_heads
    return t.new_zeros(len(t), num_heads, side, side), t.new_zeros(len(t), num_heads, side, 1)


def _multiply(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
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


def _normaliser(queries: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    # BLAS is slow with single columns.
    return ((queries * mean.mT).sum(-1, keepdim=True) + _EPS).reciprocal()


def _focus(t: torch.Tensor, factor: torch.Tensor, power: int) -> torch.Tensor:
    y = (t.relu() + _EPS) * factor
    length = torch.linalg.vector_norm(y, dim=-1, keepdim=True)
    # The power of y itself could overflow or vanish.
    direction = y / length
    result = direction
    for _ in range(power - 1):
        # The gradient of `pow` is slow.
        result = result * direction
    return result * (length / torch.linalg.vector_norm(result, dim=-1, keepdim=True))


class _Focused(NamedTuple):
    """Features and what they are made of: `(B, N, C)`, and `(B, N, 1)` for the lengths."""

    features: torch.Tensor
    direction: torch.Tensor
    length: torch.Tensor
    power_length: torch.Tensor


def _features(t: torch.Tensor, factor: torch.Tensor, power: int) -> torch.Tensor:
    """`_focus` in as little memory as it takes."""
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
    torch.addcmul(_EPS * factor, y, factor, out=y)
    length = torch.linalg.vector_norm(y, dim=-1, keepdim=True)
    return y.div_(length), length


def _power(t: torch.Tensor, power: int) -> torch.Tensor:
    # PyTorch's `pow` takes one pass up to the third power; beyond, it is slow.
    return _times_power(t.pow(min(power, 3)), t, power - 3)


def _focus_backward(
    grad: torch.Tensor, t: torch.Tensor, factor: torch.Tensor, focused: _Focused, power: int
) -> torch.Tensor:
    """Turns the gradient of the features into that of t, in place, and returns that of the factor."""
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


def _heads(t: torch.Tensor, num_heads: int) -> torch.Tensor:
    """A view `(B, H, N, C // H)` of `(B, N, C)`."""
    return t.unflatten(2, (num_heads, -1)).transpose(1, 2)


def _factor(scale: torch.Tensor) -> torch.Tensor:
    return F.softplus(_wide(scale)).reciprocal()


def _wide(t: torch.Tensor) -> torch.Tensor:
    return t.to(torch.promote_types(t.dtype, torch.float32))


def _chunks(t: torch.Tensor, numbers: int) -> Iterator[tuple[slice, slice]]:
    """Runs of images, or of rows of one image, of `(B, N, C)`."""
    images, rows = (max(1, numbers // size) for size in (t.size(1) * t.size(2), t.size(2)))
    for image in range(0, len(t), images):
        for row in range(0, t.size(1), rows):
            yield slice(image, image + images), slice(row, row + rows)
