"""Pooling over single axes of a map, each formulated for its layout, with one joint gradient.

PyTorch reduces the rows and columns of channels_last maps, and short rows on the CPU, up to ten times slower than
memory allows, and a gradient through several pools writes the map anew for each; this does neither.
"""

from typing import Any

import torch
from torch.nn import functional as F

from visionattn.ops._axis import spread_pools
from visionattn.ops._modes import needs_formula
from visionattn.ops.layout import memory_format

from ._chunks import images_of
from ._function import Function

__all__ = ["axis_mean", "axis_pools", "map_and_pools"]

Pools = tuple[tuple[str, int], ...]


def axis_pools(x: torch.Tensor, pools: Pools) -> tuple[torch.Tensor, ...]:
    """As `visionattn.ops.axis_pools`."""
    return map_and_pools(x, pools)[1:]


def map_and_pools(x: torch.Tensor, pools: Pools) -> tuple[torch.Tensor, ...]:
    """The map itself, whose gradient those of the pools are added to in place, and the pools."""
    if x.requires_grad and torch.is_grad_enabled():
        return _AxisPools.apply(x, pools)[: 1 + len(pools)]
    return x, *(axis_mean(x, axis) if kind == "mean" else _max(x, axis) for kind, axis in pools)


class _AxisPools(Function):
    """Returns the map before the pools, the indices of the maxima after them. Saves only these, not the map."""

    @staticmethod
    def forward(x: torch.Tensor, pools: Pools) -> tuple[torch.Tensor, ...]:
        pooled = [(axis_mean(x, axis), None) if kind == "mean" else _max_with_index(x, axis) for kind, axis in pools]
        return x.view_as(x), *(value for value, _ in pooled), *(index for _, index in pooled if index is not None)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
        x, ctx.pools = inputs
        indices = output[1 + len(ctx.pools) :]
        ctx.shape, ctx.layout = x.shape, memory_format(x)
        ctx.save_for_backward(*indices)
        ctx.mark_non_differentiable(*indices)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, total: torch.Tensor | None, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, None]:
        indices = iter(ctx.saved_tensors)
        means, maxima = [], []
        for (kind, axis), grad in zip(ctx.pools, grads, strict=False):
            index = next(indices) if kind == "max" else None
            if grad is not None and index is not None:
                maxima.append((axis, grad, index))
            elif grad is not None:
                means.append((axis, grad))
        if not means and not maxima:
            return total, None
        if torch.is_grad_enabled() or needs_formula():
            named = [((axis,), grad, index) for axis, grad, index in maxima]
            return spread_pools(total, ctx.shape, [((axis,), grad) for axis, grad in means], named), None
        parts = [(grad.unsqueeze(axis) / ctx.shape[axis]).contiguous(memory_format=ctx.layout) for axis, grad in means]
        if total is None:
            # Means go everywhere: the sum of two is the memory that the rest is added to.
            first = parts[0] + parts[1] if len(parts) > 1 else parts[0] if parts else maxima[0][1].new_zeros(())
            total, parts = first.expand(ctx.shape), parts[2:]
        total = total.contiguous(memory_format=ctx.layout)
        for image, *shares in zip(*(part.split(images_of(total)) for part in (total, *parts)), strict=True):
            for share in shares:
                image += share
        for axis, grad, index in maxima:
            total.scatter_add_(axis, index.unsqueeze(axis), grad.unsqueeze(axis))
        return total, None


def axis_mean(x: torch.Tensor, axis: int) -> torch.Tensor:
    """`x.mean(axis)` for axis 1, 2 or 3 of a map `(B, C, H, W)`, formulated for its layout."""
    if x.is_contiguous() or memory_format(x) != torch.channels_last:
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


def _max_with_index(x: torch.Tensor, axis: int) -> tuple[torch.Tensor, torch.Tensor]:
    if x.device.type != "cpu" or axis == 1 or memory_format(x) != torch.channels_last:
        return x.max(axis)
    values, position = F.max_pool2d(x, _window(x, axis), return_indices=True)
    index = position // x.size(3) if axis == 2 else position % x.size(3)
    return values.squeeze(axis), index.squeeze(axis)


def _window(x: torch.Tensor, axis: int) -> tuple[int, int]:
    return (x.size(2), 1) if axis == 2 else (1, x.size(3))
