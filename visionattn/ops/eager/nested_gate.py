"""Pooling of whole maps and the nested gate, without storing the map between the two gates.

What is needed of that map is computed again, a part at a time so that it stays in the cache. The map goes *through* the
pools, so their gradients are added in place to that of the gates: the sums of whole maps that PyTorch would make
instead cost more than the gates.
"""

from typing import Any

import torch
from torch.nn import functional as F

from visionattn.ops._modes import use_eager_kernel
from visionattn.ops.layout import as_rows, memory_format
from visionattn.ops.max_first import max_first

from ._chunks import chunks, room_of
from ._function import EagerFunction, Tensors

__all__ = ["GatedPools", "MapPools", "gated_pools", "pays", "weighted_sum", "whole_max"]

# Maps of fewer numbers gain less than the calls from Python cost.
_WORTHWHILE = 2**17
# Positions that float32 can count.
_COUNTABLE = 2**24


def pays(x: torch.Tensor) -> bool:
    """Whether these passes are faster for a map."""
    return use_eager_kernel(x) and x.numel() >= _WORTHWHILE and x.shape[2:].numel() < _COUNTABLE


class MapPools(EagerFunction):
    """The map itself, and the mean and maximum of each channel with its index."""

    results = 3

    @staticmethod
    def compute(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if memory_format(x) == torch.channels_last:
            maximum, index = F.max_pool2d(x, x.shape[2:], return_indices=True)
            return x.view_as(x), x.mean((2, 3)), maximum.flatten(1), index.flatten(1)
        rows, _ = as_rows(x)
        maximum, room = rows.amax(2, keepdim=True), room_of(rows)
        index = torch.empty(maximum.shape, dtype=torch.int64)
        for at in chunks(rows):
            index[at] = _first_index(rows[at], maximum[at], 2, _part(room, rows[at]))
        return x.view_as(x), x.mean((2, 3)), maximum.squeeze(2), index.squeeze(2)

    @staticmethod
    def gradients(ctx: Any, grad: torch.Tensor, mean: torch.Tensor, maximum: torch.Tensor) -> Tensors:
        x, index = ctx.saved_tensors
        # Not in place: an addition hands the same gradient to both of its sides.
        grad = grad.contiguous(memory_format=memory_format(x)) + (mean / x[0, 0].numel())[:, :, None, None]
        rows, axis = as_rows(grad)
        rows.scatter_add_(3 - axis, index.unsqueeze(3 - axis), maximum.unsqueeze(3 - axis))
        return (grad,)


class GatedPools(EagerFunction):
    """The map itself, and the maximum, its index, and the mean of `x * channel` over the channels."""

    results = 3

    @staticmethod
    def compute(x: torch.Tensor, channel: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return x.view_as(x), *gated_pools(x, channel, with_index=True)

    @staticmethod
    def gradients(ctx: Any, grad: torch.Tensor, maximum: torch.Tensor, mean: torch.Tensor) -> Tensors:
        x, channel, index = ctx.saved_tensors
        grad = grad.contiguous(memory_format=memory_format(x))
        (rows, axis), (values, _) = as_rows(grad), as_rows(x)
        index, maximum = (tensor.flatten(1).unsqueeze(axis) for tensor in (index, maximum))
        mean = (mean / x.size(1)).flatten(1)
        gate = channel.unsqueeze(3 - axis)
        rows.addcmul_(gate, mean.unsqueeze(axis))
        rows.scatter_add_(axis, index, maximum * gate.expand_as(rows).gather(axis, index))
        channel_grad = weighted_sum(values, mean, 3 - axis)
        channel_grad.scatter_add_(1, index.squeeze(axis), (maximum * values.gather(axis, index)).squeeze(axis))
        return grad, channel_grad


def whole_max(x: torch.Tensor) -> torch.Tensor:
    """The maximum of each channel, `(B, C)`; where values tie, the gradient goes to the first."""
    # `amax` of an NHWC map takes up to eight times as long where the channels are no multiple of 32.
    if x.is_cpu and memory_format(x) == torch.channels_last:
        return F.max_pool2d(x, x.shape[2:]).flatten(1)
    return max_first(x.flatten(2), 2)


def gated_pools(
    x: torch.Tensor, channel: torch.Tensor, with_index: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """The maximum and mean of `x * channel` over the channels, `(B, H, W)`, and optionally the maximum's index."""
    rows, axis = as_rows(x)
    gate, room = channel.unsqueeze(3 - axis), room_of(rows)
    shape = [1 if dim == axis else size for dim, size in enumerate(rows.shape)]
    maximum, mean = x.new_full(shape, float("-inf")), x.new_zeros(shape)
    index = torch.zeros(shape, dtype=torch.int64) if with_index else None
    for at in chunks(rows):
        to = _within(maximum, at)
        y = torch.mul(rows[at], gate[_within(gate, at)], out=_part(room, rows[at]))
        top = y.amax(axis, keepdim=True)
        mean[to] += y.sum(axis, keepdim=True)
        if index is not None:
            first = _first_index(y, top, axis, y) + (at[1].start if axis == 1 else 0)
            index[to] = torch.where(top > maximum[to], first, index[to])
        maximum[to] = torch.maximum(maximum[to], top)
    mean /= x.size(1)
    size = (len(x), *x.shape[2:])
    return maximum.view(size), mean.view(size), None if index is None else index.view(size)


def weighted_sum(rows: torch.Tensor, weight: torch.Tensor, axis: int) -> torch.Tensor:
    """Sums over an axis, 1 or 2, with weights `(B, size of the axis)`."""
    # In this order of the operands; the other is up to twenty times as slow.
    return (weight.unsqueeze(1) @ (rows if axis == 1 else rows.mT)).squeeze(1)


def _within(part: torch.Tensor, at: tuple[slice, slice]) -> tuple[slice, slice]:
    """Where a part that may have size 1 along the rows meets some rows of a map."""
    return (at[0], slice(None)) if part.size(1) == 1 else at


def _part(room: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return room[: like.size(0), : like.size(1)]


def _first_index(x: torch.Tensor, maximum: torch.Tensor, dim: int, out: torch.Tensor) -> torch.Tensor:
    """The first index of the maximum over one dimension.

    `x.max(dim)` takes two to four times as long on the CPU as `amax` and this: three dense passes.

    Args:
        x: Floats; fewer than 2**24 along `dim`, which float32 can count.
        maximum: `x.amax(dim, keepdim=True)`.
        dim: The dimension.
        out: Memory to work in, like `x`; may be `x`.

    Returns:
        Indices, with `dim` of size 1. Anything within range where the maximum is NaN.
    """
    size = x.size(dim)
    countdown = torch.arange(size, 0, -1, dtype=x.dtype, device=x.device)
    countdown = countdown.view([-1 if axis == dim else 1 for axis in range(x.ndim)])
    left = torch.eq(x, maximum, out=out).mul_(countdown).amax(dim, keepdim=True)
    return left.sub_(size).neg_().clamp_(max=size - 1).long()
