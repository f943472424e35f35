"""Pooling of whole maps and the nested gate, without storing the map between the two gates.

What is needed of that map is computed again, a few images at a time so that it stays in the cache. The map goes
*through* the pools, so their gradients are added in place to that of the gates: the sums of whole maps that PyTorch
would make instead cost more than the gates.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from visionattn.ops._modes import use_eager_kernel
from visionattn.ops.layout import as_rows, memory_format

from ._function import EagerFunction, Tensors
from .axis_pools import axis_mean

__all__ = ["GatedPools", "MapPools", "gated_pools", "pays", "whole_max", "whole_mean"]

# Numbers in what is worked on at a time: 2 MB in float32.
_CHUNK = 2**19
# Maps of fewer numbers gain less than the calls from Python cost.
_WORTHWHILE = 2**17
# Positions that float32 can count.
_COUNTABLE = 2**24


def pays(x: torch.Tensor) -> bool:
    """Whether these passes are faster for a map."""
    return use_eager_kernel(x) and x.numel() >= _WORTHWHILE and x[0, 0].numel() < _COUNTABLE


class MapPools(EagerFunction):
    """The map itself, and the mean and maximum of each channel with its index."""

    results = 3

    @staticmethod
    def compute(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if memory_format(x) == torch.channels_last:
            maximum, index = F.max_pool2d(x, x.shape[2:], return_indices=True)
            return x.view_as(x), whole_mean(x), maximum.flatten(1), index.flatten(1)
        rows, _ = as_rows(x)
        maximum = rows.amax(2, keepdim=True)
        scratch = _scratch(rows)
        index = torch.cat([_first_index(scratch[: len(a)].copy_(a), b, 2) for a, b in _chunks(rows, maximum)])
        return x.view_as(x), whole_mean(x), maximum.squeeze(2), index.squeeze(2)

    @staticmethod
    def gradients(ctx: Any, grad: torch.Tensor, mean: torch.Tensor, maximum: torch.Tensor) -> Tensors:
        x, index = ctx.saved_tensors
        grad = grad.contiguous(memory_format=memory_format(x))
        rows, axis = as_rows(grad)
        rows += (mean / rows.size(3 - axis)).unsqueeze(3 - axis)
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
        channel_grad = _weighted_sum(values, mean, 3 - axis)
        channel_grad.scatter_add_(1, index.squeeze(axis), (maximum * values.gather(axis, index)).squeeze(axis))
        return grad, channel_grad


def whole_mean(x: torch.Tensor) -> torch.Tensor:
    """The mean of each channel, `(B, C)`."""
    return axis_mean(x, 3).mean(2) if memory_format(x) == torch.channels_last else x.mean((2, 3))


def whole_max(x: torch.Tensor) -> torch.Tensor:
    """The maximum of each channel, `(B, C)`."""
    if memory_format(x) == torch.channels_last:
        return F.max_pool2d(x, x.shape[2:]).flatten(1)
    return x.flatten(2).amax(2)


def gated_pools(
    x: torch.Tensor, channel: torch.Tensor, with_index: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """The maximum and mean of `x * channel` over the channels, `(B, H, W)`, and optionally the maximum's index."""
    rows, axis = as_rows(x)
    found: list[tuple[torch.Tensor, ...]] = []
    scratch = _scratch(rows)
    for part, gate in _chunks(rows, channel):
        y = torch.mul(part, gate.unsqueeze(3 - axis), out=scratch[: len(part)])
        maximum, mean = y.amax(axis, keepdim=True), y.mean(axis, keepdim=True)
        found.append((maximum, mean, *([_first_index(y, maximum, axis)] if with_index else [])))
    maximum, mean, *index = (torch.cat(part).view(len(x), *x.shape[2:]) for part in zip(*found, strict=True))
    return maximum, mean, (index[0] if index else None)


def _weighted_sum(rows: torch.Tensor, weight: torch.Tensor, axis: int) -> torch.Tensor:
    """Sums over an axis, 1 or 2, with weights `(B, size of the axis)`."""
    # In this order of the operands; the other is up to twenty times as slow.
    return (weight.unsqueeze(1) @ (rows if axis == 1 else rows.mT)).squeeze(1)


def _chunks(*tensors: torch.Tensor) -> Iterator[Sequence[torch.Tensor]]:
    """Chunks of images sized for the first tensor."""
    return zip(*(tensor.split(_images(tensors[0])) for tensor in tensors), strict=True)


def _scratch(rows: torch.Tensor) -> torch.Tensor:
    """Scratch memory for the longest chunk."""
    return torch.empty_like(rows[: _images(rows)])


def _images(rows: torch.Tensor) -> int:
    return max(1, _CHUNK // max(1, rows.shape[1] * rows.shape[2]))


def _first_index(x: torch.Tensor, maximum: torch.Tensor, dim: int) -> torch.Tensor:
    """The first index of the maximum over one dimension. Overwrites `x`.

    `x.max(dim)` takes two to four times as long on the CPU as `amax` and this: three dense passes.

    Args:
        x: Floats; fewer than 2**24 along `dim`, which float32 can count.
        maximum: `x.amax(dim, keepdim=True)`.
        dim: The dimension.

    Returns:
        Indices, with `dim` of size 1. Anything within range where the maximum is NaN.
    """
    size = x.size(dim)
    countdown = torch.arange(size, 0, -1, dtype=x.dtype, device=x.device)
    countdown = countdown.view([-1 if axis == dim else 1 for axis in range(x.ndim)])
    left = torch.eq(x, maximum, out=x).mul_(countdown).amax(dim, keepdim=True)
    return left.sub_(size).neg_().clamp_(max=size - 1).long()
