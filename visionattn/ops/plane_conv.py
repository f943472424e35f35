"""Convolution of a few planes to one, as used by spatial gates."""

import torch
from torch.nn import functional as F

from ._modes import use_eager_kernel
from .eager.plane_conv import plane_conv as eager_plane_conv

__all__ = ["plane_conv"]


def plane_conv(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`conv2d(x, weight, padding=K // 2)` at equal size. `(B, I, H, W), (1, I, K, K) -> (B, 1, H, W)`, K odd."""
    if use_eager_kernel(x) and not torch.is_autocast_enabled("cpu"):
        return eager_plane_conv(x, weight)
    return F.conv2d(x, weight, padding=weight.size(-1) // 2)
