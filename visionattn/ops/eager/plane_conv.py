"""Convolution to one plane: PyTorch's is slow with one output channel, above all in the backward pass.

Each row of the kernel is a banded matrix that the rows of the planes are multiplied with: dense products of short rows
take a fraction of the time of so narrow a convolution. What each row of the kernel gives is added, shifted by row.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import functional as F

from ._function import EagerFunction, Tensors

__all__ = ["plane_conv"]

# Longer rows waste more in the products with zeros than the convolution loses.
_WIDEST = 80


def plane_conv(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """As `visionattn.ops.plane_conv`."""
    return _PlaneConv.apply(_formula, x, weight) if x.size(3) <= _WIDEST else _by_rows(x, weight)


def _formula(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.conv2d(x, weight, padding=weight.size(-1) // 2)


def _by_rows(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Each row of the kernel as an output channel of one convolution along the rows."""
    pad, height = weight.size(-1) // 2, x.size(2)
    rows = F.conv2d(F.pad(x, (0, 0, pad, pad)), weight.permute(2, 1, 0, 3), padding=(0, pad))
    out: Any = sum(row[:, i : i + height] for i, row in enumerate(rows.unbind(1)))
    return out.unsqueeze(1)


class _PlaneConv(EagerFunction):
    """The convolution by products with banded matrices."""

    @staticmethod
    def compute(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        batch, _, height, width = x.shape
        parts = (_rows(x) @ _banded(weight, width)).view(batch, height, -1, width)
        out = x.new_zeros(batch, height, width)
        for row, to, source in _shifts(height, weight.size(-1)):
            out[:, to] += parts[:, source, row]
        return out.unsqueeze(1)

    @staticmethod
    def gradients(ctx: Any, grad: torch.Tensor) -> Tensors:
        x, weight = ctx.saved_tensors
        batch, planes, height, width = x.shape
        size = weight.size(-1)
        parts = x.new_zeros(batch, height, size, width)
        for row, to, source in _shifts(height, size):
            parts[:, source, row] = grad[:, 0, to]
        parts = parts.view(batch * height, -1)
        d_x = parts @ _banded(weight, width).T
        d_banded = (_rows(x).T @ parts).view(planes, width, size, width).permute(0, 2, 1, 3)
        d_weight = d_banded.reshape(planes * size, -1) @ _band(width, size, x.dtype)
        return d_x.view(batch, height, planes, width).transpose(1, 2), d_weight.view(weight.shape)


def _rows(x: torch.Tensor) -> torch.Tensor:
    """The rows of all planes side by side, `(B H, I W)`."""
    return x.transpose(1, 2).reshape(x.size(0) * x.size(2), -1)


def _banded(weight: torch.Tensor, width: int) -> torch.Tensor:
    """The rows of the kernels as matrices side by side, `(I W, K W)`."""
    planes, size = weight.size(1), weight.size(-1)
    matrices = weight.reshape(planes * size, size) @ _band(width, size, weight.dtype).T
    return matrices.view(planes, size, width, width).transpose(1, 2).reshape(planes * width, size * width)


def _band(width: int, size: int, dtype: torch.dtype) -> torch.Tensor:
    """Which entries of a matrix `(W, W)`, flattened, hold each entry of a kernel's row: `(W W, K)`."""
    at = torch.arange(width, device="cpu")
    offset = at.unsqueeze(1) - at + size // 2
    return (offset.flatten().unsqueeze(1) == torch.arange(size)).to(dtype)


def _shifts(height: int, size: int) -> Iterator[tuple[int, slice, slice]]:
    """For each row of a kernel, where its results go and come from along the rows of the planes."""
    for row in range(size):
        shift = row - size // 2
        if abs(shift) < height:
            yield row, slice(max(0, -shift), height - max(0, shift)), slice(max(0, shift), height - max(0, -shift))
