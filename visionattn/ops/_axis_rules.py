"""Which maps, pools and gates the kernels for axes take; they look at nothing but shapes, strides and dtypes."""

from collections.abc import Sequence

import torch

__all__ = ["fits_gates", "refuses_gates", "refuses_map", "refuses_maxima"]


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
    if not 1 <= len(gates) <= 3 or not all(fits_gates(x, gate) for gate in gates):
        return "kernels take one to three gates for each image, of size 1 or the map's along each axis"
    tensors = [*gates, *([] if residual is None else [residual])]
    if not all(part.device == x.device and part.is_floating_point() and part.dtype.itemsize < 8 for part in tensors):
        return "gates and residual must be floats on the map's device, of float32 at most"
    if residual is not None and residual.shape != x.shape:
        return "the residual must have the map's shape"
    return ""


def fits_gates(x: torch.Tensor, gate: torch.Tensor) -> bool:
    """Whether a gate has the map's batch, and size 1 or the map's along each other axis."""
    same = gate.ndim == x.ndim and gate.shape[0] == x.shape[0]
    return same and all(size in (1, full) for size, full in zip(gate.shape[1:], x.shape[1:], strict=True))
