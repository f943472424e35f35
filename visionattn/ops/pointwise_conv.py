"""Convolutions of one position, as products where a compiler reads the code."""

import torch
from torch.nn import functional as F

from ._modes import compiling
from .layout import as_rows

__all__ = ["pointwise_conv", "pointwise_rows"]


def pointwise_conv(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`conv2d(x, weight, bias)`. `(B, C, H, W) -> (B, C', H, W)`.

    A compiler that meets a convolution on the CPU copies the map to channels last before it and back after it; a
    product takes the map as it lies.

    Args:
        x: The map.
        weight: `(C', C, 1, 1)`.
        bias: `(C',)`.
    """
    if not compiling() or x.device.type != "cpu":
        return F.conv2d(x, weight, bias)
    rows, axis = as_rows(x)
    out = pointwise_rows(rows, axis, weight.flatten(1), bias)
    return out.unflatten(3 - axis, x.shape[2:]).movedim(2 * axis - 1, 1)


def pointwise_rows(
    rows: torch.Tensor, axis: int, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """The same of a map with flattened positions, in its layout: `rows` and `axis` as `as_rows` gives them."""
    if axis == 2:
        return F.linear(rows, weight, bias)
    weight = weight.expand(rows.size(0), -1, -1)
    return weight @ rows if bias is None else torch.baddbmm(bias[:, None], weight, rows)
