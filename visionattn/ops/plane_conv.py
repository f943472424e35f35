"""Convolution of a few planes to one, as used by spatial gates."""

from collections.abc import Callable

import torch
from torch.nn import functional as F

from ._modes import compiling, use_eager_kernel
from .eager.plane_conv import plane_conv as eager_plane_conv

__all__ = ["plane_conv"]

# Convolutions of fewer multiplications gain less by the pass of our own than its seven slices and sums cost: of eight
# planes of 14x14 and a kernel of 7 PyTorch's takes 0.67 of the time, 0.87 in training; at 64x7 1.5 times in training.
_WORTHWHILE = 2**18
# The shorter side of the planes up to which a compiler gets products, which grow with it.
_LONGEST = 128


def plane_conv(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`conv2d(x, weight, padding=K // 2)` at equal size. `(B, I, H, W), (1, I, K, K) -> (B, 1, H, W)`, K odd."""
    if use_eager_kernel(x) and x.numel() * weight.size(-1) ** 2 >= _WORTHWHILE and not torch.is_autocast_enabled("cpu"):
        conv: Callable[..., torch.Tensor] = eager_plane_conv
    elif compiling() and x.device.type == "cpu" and min(x.shape[2:]) <= _LONGEST:
        conv = _by_products
    else:
        return F.conv2d(x, weight, padding=weight.size(-1) // 2)
    # Both are faster, up to four times, along the longer side.
    return conv(x.mT, weight.mT).mT if x.size(2) < x.size(3) else conv(x, weight)


def _by_products(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """For compilers, which would lay out with channels last all that a convolution depends on, as in `strip_conv`.

    The rows of the planes are multiplied with the rows of the kernel as banded matrices, then added, shifted.
    """
    (batch, planes, height, width), size = x.shape, weight.size(-1)
    at = torch.arange(width, device=x.device)
    band = (at.unsqueeze(1) - at + size // 2).unsqueeze(2) == torch.arange(size, device=x.device)
    # (W, W, K) with the K numbers of a row of the kernel: (I W, K W).
    matrices = torch.einsum("ikt,uwt->iukw", weight[0], band.to(weight.dtype)).reshape(planes * width, size * width)
    parts = x.transpose(1, 2).reshape(batch * height, -1) @ matrices
    parts = F.pad(parts.view(batch, height, size, width), (0, 0, 0, 0, size // 2, size // 2))
    out = parts[:, :height, 0]
    for row in range(1, size):
        out = out + parts[:, row : row + height, row]
    return out.unsqueeze(1)
