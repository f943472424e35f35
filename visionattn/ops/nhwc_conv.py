"""Convolution of channels-last maps `(B, H, W, C)` without layout copies."""

import torch
from torch.nn import functional as F

from ._modes import compiling, needs_formula

__all__ = ["nhwc_conv", "nhwc_upconv"]


def nhwc_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
) -> torch.Tensor:
    """`conv2d` of a map `(B, H, W, I)` with a weight `(O, I / groups, K, K)`: `(B, H', W', O)`.

    Convolutions whose patches do not overlap, above all pointwise ones, are one matrix product.
    """
    if groups == 1 and padding == 0 and weight.shape[2:] == (stride, stride):
        if stride > 1:
            height, width = (side // stride for side in x.shape[1:3])
            x = x[:, : height * stride, : width * stride]
            x = x.unflatten(2, (width, stride)).unflatten(1, (height, stride)).transpose(2, 3)
            if _prefer_weight(weight, x.numel()):
                return F.linear(x.permute(0, 1, 2, 5, 3, 4).flatten(3), weight.flatten(1), bias)
            x = x.flatten(3)
        return F.linear(x, weight.permute(0, 2, 3, 1).flatten(1), bias)
    return F.conv2d(x.permute(0, 3, 1, 2), weight, bias, stride, padding, groups=groups).permute(0, 2, 3, 1)


def nhwc_upconv(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`conv_transpose2d` of a map `(B, H, W, I)` whose patches do not overlap: `(B, H * K, W * K, O)`, one product.

    Args:
        x: The map.
        weight: Of shape `(I, O, K, K)`; the step is K.
    """
    _, width, *side = weight.shape
    if _prefer_weight(weight, x[..., 0].numel() * width * side[0] * side[1]):
        x = (x @ weight.flatten(1)).unflatten(3, (width, *side)).permute(0, 1, 4, 2, 5, 3)
    else:
        x = F.linear(x, weight.permute(2, 3, 1, 0).flatten(0, 2)).unflatten(3, (*side, width)).transpose(2, 3)
    return x.flatten(3, 4).flatten(1, 2)


def _prefer_weight(weight: torch.Tensor, numbers: int) -> bool:
    """Whether few positions are rather laid out as a weight of many channels lies than the other way round."""
    return (compiling() or not needs_formula()) and numbers < weight.numel()
