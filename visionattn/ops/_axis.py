"""Parts shared by operations over the axes of a map: kernel limits, and formulas of gates and of pooling gradients."""

from collections.abc import Sequence

import torch

__all__ = ["fits_gates", "join_gates", "refuses_gates", "refuses_map", "refuses_maxima", "spread_pools"]

# How gates make one -> how many.
JOINS = {"product": (1, 2, 3), "sum": (2, 3), "mixed": (3,)}


def refuses_map(x: torch.Tensor) -> str:
    """Why kernels cannot take a map `(B, C, H, W)`, or ""."""
    if x.ndim != 4 or not x.numel():
        return "kernels take maps (B, C, H, W) that are not empty"
    if not x.is_contiguous() and not x.is_contiguous(memory_format=torch.channels_last):
        return "the map lies neither as NCHW nor as NHWC does"
    if x[0].numel() >= 2**31:
        return "an image has more than 2**31 numbers"
    return ""


def refuses_maxima(x: torch.Tensor, positions: int) -> str:
    """Why kernels cannot find the maximum of so many positions, or ""."""
    if x.dtype.itemsize == 2 and positions > 2**16:
        return "in half precision a maximum is one of at most 65536 positions"
    return ""


def refuses_gates(x: torch.Tensor, gates: Sequence[torch.Tensor], residual: torch.Tensor | None = None) -> str:
    """Why kernels cannot gate a map by these, or ""."""
    if reason := refuses_map(x):
        return reason
    if not 1 <= len(gates) <= 3 or not fits_gates(x, *gates):
        return "kernels take one to three gates for each image, of size 1 or the map's along each axis"
    tensors = [*gates, *([] if residual is None else [residual])]
    if not all(part.device == x.device and part.is_floating_point() and part.dtype.itemsize < 8 for part in tensors):
        return "gates and residual must be floats on the map's device, of float32 at most"
    if residual is not None and residual.shape != x.shape:
        return "the residual must have the map's shape"
    return ""


def fits_gates(x: torch.Tensor, *gates: torch.Tensor) -> bool:
    """Whether gates have the map's batch, and size 1 or the map's along each other axis."""
    full = x.shape
    for gate in gates:
        sizes = gate.shape
        if len(sizes) != len(full) or sizes[0] != full[0]:
            return False
        for axis, size in enumerate(sizes):  # a generator takes twice as long
            if size != 1 and size != full[axis]:
                return False
    return True


def join_gates(gates: Sequence[torch.Tensor], join: str) -> torch.Tensor:
    """One gate of one to three, as `axis_gate` says."""
    first, *others = gates
    for position, gate in enumerate(others):
        first = first * gate if join == "product" or (join == "mixed" and not position) else first + gate
    return first


def spread_pools(
    grad: torch.Tensor | None,
    shape: Sequence[int],
    means: Sequence[tuple[Sequence[int], torch.Tensor]],
    maxima: Sequence[tuple[Sequence[int], torch.Tensor, torch.Tensor]],
) -> torch.Tensor:
    """The gradient of a map from its own and those of its pools, as a formula that can be differentiated.

    Args:
        grad: Of the map itself, if it has one.
        shape: Of the map.
        means: The pooled axes and the gradient of each mean.
        maxima: The pooled axes, the gradient and the index, flattened over these axes, of each maximum.
    """
    total = grad
    for axes, part in means:
        total = _add(total, _restored(part, axes).expand(shape) / _size(shape, axes))
    for axes, part, index in maxima:
        position = torch.arange(_size(shape, axes), device=part.device)
        position = position.view([size if axis in axes else 1 for axis, size in enumerate(shape)])
        total = _add(total, torch.where(position == _restored(index, axes), _restored(part, axes), 0))
    assert total is not None  # there is a gradient of something
    return total


def _add(total: torch.Tensor | None, part: torch.Tensor) -> torch.Tensor:
    return part if total is None else total + part


def _restored(x: torch.Tensor, axes: Sequence[int]) -> torch.Tensor:
    for axis in sorted(axes):
        x = x.unsqueeze(axis)
    return x


def _size(shape: Sequence[int], axes: Sequence[int]) -> int:
    size = 1
    for axis in axes:
        size *= shape[axis]
    return size
