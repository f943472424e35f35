"""Means and maxima of a map over its axes, in the formulation that is fastest in plain PyTorch."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from ._axis_rules import refuses_map, refuses_maxima
from ._dispatch import has_kernel
from ._eager import HandWritten, traced
from .layout import memory_format
from .pool import max_first

__all__ = ["axis_mean", "axis_pools", "refuses_pools"]


def refuses_pools(x: torch.Tensor, pools: Sequence[tuple[str, int]]) -> str:
    """Why kernels cannot pool a map so, or ""."""
    maxima = (refuses_maxima(x, x.shape[axis]) for kind, axis in pools if kind == "max")
    return refuses_map(x) or next(filter(None, maxima), "")


@has_kernel("axis", refuses_pools)
def axis_pools(x: torch.Tensor, pools: Sequence[tuple[str, int]]) -> tuple[torch.Tensor, ...]:
    """Pools a map `(B, C, H, W)` over single axes: the results of `x.mean(axis)` and `max_first(x, axis)`.

    PyTorch reduces the rows and columns of channels_last maps, and short rows on the CPU, up to ten times slower than
    memory allows, and a gradient through several pools writes the map anew for each; this does neither.

    Args:
        x: The map, in any layout.
        pools: `("mean", axis)` and `("max", axis)` in any number, each axis 1 (C), 2 (H) or 3 (W).

    Returns:
        One tensor for each pool, with the other axes in their order.
    """
    if traced():
        return tuple(x.mean(axis) if kind == "mean" else max_first(x, axis) for kind, axis in pools)
    if x.requires_grad and torch.is_grad_enabled():
        return _AxisPools.apply(x, tuple(pools))[: len(pools)]
    return tuple(axis_mean(x, axis) if kind == "mean" else _max(x, axis) for kind, axis in pools)


class _AxisPools(HandWritten):
    """The pools with one gradient for all, written in place; gives the indices of the maxima after the pools."""

    @staticmethod
    def forward(x: torch.Tensor, pools: tuple[tuple[str, int], ...]) -> tuple[torch.Tensor, ...]:
        pooled = [(axis_mean(x, axis), None) if kind == "mean" else _max_with_index(x, axis) for kind, axis in pools]
        return *(value for value, _ in pooled), *(index for _, index in pooled if index is not None)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
        x, ctx.pools = inputs
        indices = output[len(ctx.pools) :]
        ctx.shape, ctx.layout = x.shape, memory_format(x)
        ctx.save_for_backward(*indices)
        ctx.mark_non_differentiable(*indices)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, None]:
        pools = [(kind, axis, grad) for (kind, axis), grad in zip(ctx.pools, grads, strict=False)]
        if all(grad is None for *_, grad in pools):
            return None, None
        # Means go everywhere: their sum is the memory that the maxima are added to.
        means = [
            (grad.unsqueeze(axis) / ctx.shape[axis]).contiguous(memory_format=ctx.layout)
            for kind, axis, grad in pools
            if kind == "mean" and grad is not None
        ]
        if len(means) > 1:
            total = (means[0] + means[1]).expand(ctx.shape).contiguous(memory_format=ctx.layout)
            for mean in means[2:]:
                total.add_(mean)
        else:
            like = next(grad for *_, grad in pools if grad is not None)
            total = torch.empty(ctx.shape, dtype=like.dtype, device=like.device, memory_format=ctx.layout)
            total = total.copy_(means[0]) if means else total.zero_()
        indices = iter(ctx.saved_tensors)
        for kind, axis, grad in pools:
            index = next(indices) if kind == "max" else None
            if index is not None and grad is not None:
                total.scatter_add_(axis, index.unsqueeze(axis), grad.unsqueeze(axis))
        return total, None


def axis_mean(x: torch.Tensor, axis: int) -> torch.Tensor:
    """`x.mean(axis)` for axis 1, 2 or 3 of a map `(B, C, H, W)`, in the formulation that suits its layout."""
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


def _max_with_index(x: torch.Tensor, axis: int) -> tuple[torch.Tensor, torch.Tensor]:
    if x.device.type != "cpu" or axis == 1 or memory_format(x) != torch.channels_last:
        return x.max(axis)
    values, position = F.max_pool2d(x, _window(x, axis), return_indices=True)
    index = position // x.size(3) if axis == 2 else position % x.size(3)
    return values.squeeze(axis), index.squeeze(axis)


def _window(x: torch.Tensor, axis: int) -> tuple[int, int]:
    return (x.size(2), 1) if axis == 2 else (1, x.size(3))
