"""Pooling over single axes of a map, each formulated for its layout, with one joint gradient.

PyTorch reduces the rows and columns of channels_last maps, and short rows on the CPU, up to ten times slower than
memory allows, and a gradient through several pools writes the map anew for each; this does neither.
"""

from typing import Any

import torch
from torch.nn import functional as F

from visionattn.ops._axis import spread_pools
from visionattn.ops._modes import needs_formula, use_eager_kernel
from visionattn.ops.layout import memory_format

from ._function import Function

__all__ = ["axis_mean", "axis_pools"]

Pools = tuple[tuple[str, int], ...]


def axis_pools(x: torch.Tensor, pools: Pools) -> tuple[torch.Tensor, ...]:
    """As `visionattn.ops.axis_pools`."""
    if x.requires_grad and torch.is_grad_enabled():
        return _AxisPools.apply(x, pools)[: len(pools)]
    return tuple(axis_mean(x, axis) if kind == "mean" else _max(x, axis) for kind, axis in pools)


class _AxisPools(Function):
    """Returns the indices of the maxima after the pools, where they come with these at no cost.

    Elsewhere the backward pass finds the maxima again in the map, which the gate that follows keeps anyway.
    """

    @staticmethod
    def forward(x: torch.Tensor, pools: Pools) -> tuple[torch.Tensor | None, ...]:
        pooled = [(axis_mean(x, axis), None) if kind == "mean" else _max_with_index(x, axis) for kind, axis in pools]
        return *(value for value, _ in pooled), *(index for _, index in pooled)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
        x, ctx.pools = inputs
        indices = output[len(ctx.pools) :]
        ctx.shape, ctx.layout = x.shape, memory_format(x)
        found = [index for index in indices if index is not None]
        missing = any(kind == "max" and index is None for (kind, _), index in zip(ctx.pools, indices, strict=True))
        maxima = [value if kind == "max" else None for (kind, _), value in zip(ctx.pools, output, strict=False)]
        ctx.save_for_backward(x if missing else None, *maxima, *indices)
        ctx.mark_non_differentiable(*found)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, None]:
        x, *saved = ctx.saved_tensors
        values, indices = saved[: len(ctx.pools)], saved[len(ctx.pools) :]
        means, maxima = [], []
        for (kind, axis), grad, value, index in zip(ctx.pools, grads, values, indices, strict=False):
            if grad is not None and kind == "max":
                maxima.append((axis, grad, value, index))
            elif grad is not None:
                means.append((axis, grad))
        if not means and not maxima:
            return None, None
        if torch.is_grad_enabled() or needs_formula():
            named = [
                ((axis,), grad, x.detach().max(axis).indices if index is None else index)
                for axis, grad, _, index in maxima
            ]
            return spread_pools(None, ctx.shape, [((axis,), grad) for axis, grad in means], named), None
        # Means go everywhere: their sum is the memory that the maxima are added to.
        parts = [(grad.unsqueeze(axis) / ctx.shape[axis]).contiguous(memory_format=ctx.layout) for axis, grad in means]
        if len(parts) > 1:
            total = (parts[0] + parts[1]).expand(ctx.shape).contiguous(memory_format=ctx.layout)
            for part in parts[2:]:
                total.add_(part)
        else:
            like = (means or maxima)[0][1]
            total = torch.empty(ctx.shape, dtype=like.dtype, device=like.device, memory_format=ctx.layout)
            total = total.copy_(parts[0]) if parts else total.zero_()
        for axis, grad, value, index in maxima:
            if index is None:
                _add_to_first(total, x, value, grad, axis)
            else:
                total.scatter_add_(axis, index.unsqueeze(axis), grad.unsqueeze(axis))
        return total, None


def _add_to_first(total: torch.Tensor, x: torch.Tensor, maximum: torch.Tensor, grad: torch.Tensor, axis: int) -> None:
    """Adds the gradient of a maximum where the map first has it; an image at a time, in the cache.

    The index of a maximum costs ten times the maximum on the CPU, and is not needed where no values tie.
    """
    room = torch.empty_like(x[:1])
    for image in range(len(x)):
        part, value = x[image : image + 1], maximum[image : image + 1].unsqueeze(axis)
        slope, to = grad[image : image + 1].unsqueeze(axis), total[image : image + 1]
        hits = torch.eq(part, value, out=room)
        if bool((axis_mean(hits, axis) * x.shape[axis] > 1.5).any()):
            to.scatter_add_(axis, part.max(axis, keepdim=True).indices, slope)
        else:
            to += hits.mul_(slope)  # addcmul is slow with repeated operands


def axis_mean(x: torch.Tensor, axis: int) -> torch.Tensor:
    """`x.mean(axis)` for axis 1, 2 or 3 of a map `(B, C, H, W)`, formulated for its layout."""
    if memory_format(x) != torch.channels_last:
        return x.mean(axis)
    if axis == 3 and x.device.type == "cpu":
        return F.avg_pool2d(x, (1, x.size(3))).squeeze(3)
    # The (B, H, W, C) view is dense: its other two axes come out in the order of memory.
    mean = x.permute(0, 2, 3, 1).mean((axis + 1) % 3 + 1)
    return mean if axis == 1 else mean.transpose(1, 2)


def _max(x: torch.Tensor, axis: int) -> torch.Tensor:
    if x.device.type == "cpu" and axis != 1:
        if memory_format(x) == torch.channels_last:
            return F.max_pool2d(x, _window(x, axis)).squeeze(axis)
        # Elementwise maxima of halves, which overlap in the middle where the size is odd.
        while (size := x.size(axis)) > 8:
            half = (size + 1) // 2
            x = torch.maximum(x.narrow(axis, 0, half), x.narrow(axis, size - half, half))
    return x.amax(axis)


def _max_with_index(x: torch.Tensor, axis: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    if use_eager_kernel(x) and (axis == 1 or memory_format(x) != torch.channels_last):
        return _max(x, axis), None
    if x.device.type != "cpu" or axis == 1 or memory_format(x) != torch.channels_last:
        return x.max(axis)
    values, position = F.max_pool2d(x, _window(x, axis), return_indices=True)
    index = position // x.size(3) if axis == 2 else position % x.size(3)
    return values.squeeze(axis), index.squeeze(axis)


def _window(x: torch.Tensor, axis: int) -> tuple[int, int]:
    return (x.size(2), 1) if axis == 2 else (1, x.size(3))
