"""Convolution of channels-last maps `(B, H, W, C)` without layout copies."""

import torch
from torch.nn import functional as F

__all__ = ["nhwc_conv"]


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
            x = x.unflatten(2, (width, stride)).unflatten(1, (height, stride)).transpose(2, 3).flatten(3)
        return F.linear(x, weight.permute(0, 2, 3, 1).flatten(1), bias)
    return F.conv2d(x.permute(0, 3, 1, 2), weight, bias, stride, padding, groups=groups).permute(0, 2, 3, 1)
