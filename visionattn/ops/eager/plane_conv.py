"""Convolution to one plane: PyTorch's is slow with one output channel, above all in the backward pass."""

from typing import Any

import torch
from torch.nn import functional as F

__all__ = ["plane_conv"]


def plane_conv(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """As `visionattn.ops.plane_conv`: each row of the kernel is an output channel; they are added, shifted by row."""
    pad, height = weight.size(-1) // 2, x.size(2)
    rows = F.conv2d(F.pad(x, (0, 0, pad, pad)), weight.permute(2, 1, 0, 3), padding=(0, pad))
    out: Any = sum(row[:, i : i + height] for i, row in enumerate(rows.unbind(1)))
    return out.unsqueeze(1)
