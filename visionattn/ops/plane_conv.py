"""Convolution of a few planes to one, as spatial gates use it."""

import torch
from torch.nn import functional as F

from ._eager import use_eager_kernel

__all__ = ["plane_conv"]


def plane_conv(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Convolves with stride 1, without bias, at equal size. `(B, I, H, W), (1, I, K, K) -> (B, 1, H, W)`, K odd.

    The same as `conv2d(x, weight, padding=K // 2)`. PyTorch's CPU convolution is slow with one output channel, above
    all backwards: there each row of the kernel becomes an output channel, and these are added, shifted by their row.
    """
    pad = weight.size(-1) // 2
    if not use_eager_kernel(x) or torch.is_autocast_enabled("cpu"):
        return F.conv2d(x, weight, padding=pad)
    height = x.size(2)
    rows = F.conv2d(F.pad(x, (0, 0, pad, pad)), weight.permute(2, 1, 0, 3), padding=(0, pad))
    return sum(row[:, i : i + height] for i, row in enumerate(rows.unbind(1))).unsqueeze(1)
