"""Position encodings before mixers, on channels-last maps."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["PositionConv", "PositionEmbedding"]


class PositionConv(nn.Conv2d):
    """Conditional positional encoding: `x + depthwise conv(x)` (arXiv 2102.10882). `(B, H, W, C) -> (B, H, W, C)`.

    Args:
        dim: Width of the map.
        kernel_size: Side of the kernel, odd.
    """

    def __init__(self, dim: int, *, kernel_size: int = 3, **dd: Any) -> None:
        super().__init__(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class PositionEmbedding(nn.Module):
    """Adds one learnable vector per position. `(B, H, W, C) -> (B, H, W, C)`.

    Args:
        dim: Width of the map.
        grid_size: Height and width that the vectors are learnt for; other maps get them interpolated.
        mode: The interpolation, as in `torch.nn.functional.interpolate`.
    """

    def __init__(
        self,
        dim: int,
        grid_size: tuple[int, int],
        *,
        mode: str = "bilinear",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.mode = mode
        self.weight = nn.Parameter(torch.empty(1, *grid_size, dim, device=device, dtype=dtype))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight: torch.Tensor = self.weight
        if weight.shape[1:3] != x.shape[1:3]:
            size = (x.shape[1], x.shape[2])
            weight = F.interpolate(weight.permute(0, 3, 1, 2), size=size, mode=self.mode).permute(0, 2, 3, 1)
        return x + weight.to(x.dtype)
