"""Gating a map by channel and then by position, where the second gate looks at the map that the first one leaves.

On the CPU the map between the two gates is never stored: what is needed of it is computed again, a few images at a time
so that it stays in the cache. The map goes *through* the pools, so their gradients are added in place to that of the
gates: the sums of whole maps that PyTorch would make instead cost more than the gates.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from ._axis_rules import refuses_gates, refuses_map, refuses_maxima
from ._dispatch import has_kernel
from ._eager import HandWritten, differentiable_backward, use_eager_kernel
from .axis_pool import axis_mean
from .layout import as_rows, memory_format
from .pool import first_index, max_first

__all__ = ["map_pools", "nested_gate"]

# Numbers in what is worked on at a time: 2 MB in float32.
_CHUNK = 2**19
# Maps of fewer numbers gain less than the calls from Python cost.
_WORTHWHILE = 2**17
# Positions that float32 can count.
_COUNTABLE = 2**24


def _refuses_pools(x: torch.Tensor) -> str:
    return refuses_map(x) or refuses_maxima(x, x.shape[2] * x.shape[3])


@has_kernel("axis", _refuses_pools)
def map_pools(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The map itself, to be used in its place, and the mean and maximum of each channel.

    `(B, C, H, W) -> (B, C, H, W), (B, C), (B, C)`. Where values tie, the gradient goes to the first. The map that is
    given back may only go to operators whose gradients are tensors of their own, such as products.
    """
    if not _by_hand(x):
        return _plain_map_pools(x)
    if x.requires_grad and torch.is_grad_enabled():
        return _MapPools.apply(x)[:3]
    return x, _mean(x), _max(x)


def _refuses_gate(x: torch.Tensor, channel: torch.Tensor, spatial: Callable[[torch.Tensor], torch.Tensor]) -> str:
    return refuses_maxima(x, x.shape[1]) or refuses_gates(x, (channel[:, :, None, None],))


@has_kernel("axis", _refuses_gate)
def nested_gate(
    x: torch.Tensor, channel: torch.Tensor, spatial: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """`y * spatial(pools of y)` with `y = x * channel`, in the dtype and layout of `x`. `(B, C, H, W)`, same out.

    Args:
        x: The map.
        channel: Gate of each channel, `(B, C)`.
        spatial: Makes a gate `(B, 1, H, W)` of the maximum and mean over the channels of y, `(B, 2, H, W)`. Where
            values tie, the gradient of the maximum goes to the first.
    """
    channel = channel.to(x.dtype)
    if not _by_hand(x):
        y = x * channel[:, :, None, None]
        return y * spatial(torch.stack((max_first(y, 1), y.mean(1)), dim=1)).to(x.dtype)
    if torch.is_grad_enabled() and (x.requires_grad or channel.requires_grad):
        x, maximum, mean = _GatedPools.apply(x, channel)[:3]
    else:
        maximum, mean, _ = _gated_pools(x, channel, with_index=False)
    gate = spatial(torch.stack((maximum, mean), dim=1)).to(x.dtype)
    return _NestedGate.apply(x, channel, gate)


class _MapPools(HandWritten):
    @staticmethod
    def forward(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if memory_format(x) == torch.channels_last:
            maximum, index = F.max_pool2d(x, x.shape[2:], return_indices=True)
            return x.view_as(x), _mean(x), maximum.flatten(1), index.flatten(1)
        rows, _ = as_rows(x)
        maximum = rows.amax(2, keepdim=True)
        scratch = _scratch(rows)
        index = torch.cat([first_index(scratch[: len(a)].copy_(a), b, 2) for a, b in _chunks(rows, maximum)])
        return x.view_as(x), _mean(x), maximum.squeeze(2), index.squeeze(2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor], output: tuple[torch.Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs, output[3])
        ctx.mark_non_differentiable(output[3])

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor | None:
        x, index = ctx.saved_tensors
        if torch.is_grad_enabled():
            return differentiable_backward(_plain_map_pools, (x,), grads[:3])[0]
        grad, mean, maximum, _ = grads
        grad = grad.contiguous(memory_format=memory_format(x))
        rows, axis = as_rows(grad)
        rows += (mean / rows.size(3 - axis)).unsqueeze(3 - axis)
        rows.scatter_add_(3 - axis, index.unsqueeze(3 - axis), maximum.unsqueeze(3 - axis))
        return grad


class _GatedPools(HandWritten):
    """The map itself, and the maximum and mean of `x * channel` over the channels."""

    @staticmethod
    def forward(x: torch.Tensor, channel: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x.view_as(x), *_gated_pools(x, channel, with_index=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, ...], output: tuple[torch.Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs, output[3])
        ctx.mark_non_differentiable(output[3])

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, channel, index = ctx.saved_tensors
        if torch.is_grad_enabled():
            return differentiable_backward(_plain_gated_pools, (x, channel), grads[:3])
        grad, maximum, mean, _ = grads
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


class _NestedGate(HandWritten):
    """`x * channel * spatial`."""

    @staticmethod
    def forward(x: torch.Tensor, channel: torch.Tensor, spatial: torch.Tensor) -> torch.Tensor:
        out = torch.empty(x.shape, dtype=x.dtype, memory_format=memory_format(x))
        (values, axis), (target, _) = as_rows(x), as_rows(out)
        for part, c, s, to in _chunks(values, channel, spatial.flatten(1), target):
            torch.mul(part, c.unsqueeze(3 - axis), out=to).mul_(s.unsqueeze(axis))
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, channel, spatial = ctx.saved_tensors
        if torch.is_grad_enabled():
            return differentiable_backward(_plain_gate, (x, channel, spatial), (grad,))
        grad = grad.contiguous(memory_format=memory_format(x))
        (rows, axis), (values, _) = as_rows(grad), as_rows(x)
        out = torch.empty_like(grad)
        target, _ = as_rows(out)
        sums = []
        for part_grad, part, c, s, to in _chunks(rows, values, channel, spatial.flatten(1), target):
            # The result's memory serves the product first: fresh memory costs as much as another pass.
            torch.mul(part_grad, part, out=to)
            sums.append((_weighted_sum(to, s, 3 - axis), _weighted_sum(to, c, axis)))
            torch.mul(part_grad, c.unsqueeze(3 - axis), out=to).mul_(s.unsqueeze(axis))
        channel_grad, spatial_grad = (torch.cat(part) for part in zip(*sums, strict=True))
        return out, channel_grad, spatial_grad.view(spatial.shape)


def _by_hand(x: torch.Tensor) -> bool:
    return use_eager_kernel(x) and x.numel() >= _WORTHWHILE and x[0, 0].numel() < _COUNTABLE


def _plain_map_pools(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    flat = x.flatten(2)
    return x, flat.mean(2), max_first(flat, 2)


def _plain_gated_pools(x: torch.Tensor, channel: torch.Tensor) -> tuple[torch.Tensor, ...]:
    y = x * channel[:, :, None, None]
    return x, max_first(y, 1), y.mean(1)


def _plain_gate(x: torch.Tensor, channel: torch.Tensor, spatial: torch.Tensor) -> tuple[torch.Tensor]:
    return (x * channel[:, :, None, None] * spatial,)


def _mean(x: torch.Tensor) -> torch.Tensor:
    return axis_mean(x, 3).mean(2) if memory_format(x) == torch.channels_last else x.mean((2, 3))


def _max(x: torch.Tensor) -> torch.Tensor:
    if memory_format(x) == torch.channels_last:
        return F.max_pool2d(x, x.shape[2:]).flatten(1)
    return x.flatten(2).amax(2)


def _gated_pools(
    x: torch.Tensor, channel: torch.Tensor, with_index: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    rows, axis = as_rows(x)
    found: list[tuple[torch.Tensor, ...]] = []
    scratch = _scratch(rows)
    for part, gate in _chunks(rows, channel):
        y = torch.mul(part, gate.unsqueeze(3 - axis), out=scratch[: len(part)])
        maximum, mean = y.amax(axis, keepdim=True), y.mean(axis, keepdim=True)
        found.append((maximum, mean, *([first_index(y, maximum, axis)] if with_index else [])))
    maximum, mean, *index = (torch.cat(part).view(len(x), *x.shape[2:]) for part in zip(*found, strict=True))
    return maximum, mean, (index[0] if index else None)


def _weighted_sum(rows: torch.Tensor, weight: torch.Tensor, axis: int) -> torch.Tensor:
    """Sums over an axis, 1 or 2, with weights `(B, size of the axis)`."""
    # In this order of the operands; the other is up to twenty times as slow.
    return (weight.unsqueeze(1) @ (rows if axis == 1 else rows.mT)).squeeze(1)


def _chunks(*tensors: torch.Tensor) -> Iterator[Sequence[torch.Tensor]]:
    """Runs of images, as many as suit the first tensor."""
    return zip(*(tensor.split(_images(tensors[0])) for tensor in tensors), strict=True)


def _scratch(rows: torch.Tensor) -> torch.Tensor:
    """Memory for the longest of the runs."""
    return torch.empty_like(rows[: _images(rows)])


def _images(rows: torch.Tensor) -> int:
    return max(1, _CHUNK // max(1, rows.shape[1] * rows.shape[2]))
