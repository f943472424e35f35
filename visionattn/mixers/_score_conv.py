"""Convolutions of attention scores and weights over the grids of queries and keys."""

from typing import Any

import torch
from torch.nn import functional as F

from visionattn.ops import nhwc_conv
from visionattn.utils.arguments import check_odd, pair

__all__ = ["beside", "bias_rows", "conv_keys", "conv_tokens", "kernel_sizes", "put_block", "zeros_before"]


def kernel_sizes(name: str, size: Any, layout: str, pad_key: str) -> tuple[int, int] | None:
    """The kernel size: over queries and keys in raster order, or over the two dimensions of the grid."""
    if size is None:
        return None
    if layout == "grid":
        if not isinstance(size, int):
            raise ValueError(f"{name} must be a positive odd number with layout='grid', got {size}")
        check_odd(**{name: size})
    sizes = pair(name, size)
    if pad_key == "both" and sizes[1] % 2 == 0:
        raise ValueError(f"{name} must be odd over the keys with pad_key='both', got {size}")
    return sizes


def zeros_before(size: int, pad_key: str) -> int:
    """The number of zeros before the first key."""
    return {"both": size // 2, "left": size - 1, "right": 0}[pad_key]


def conv_tokens(x: torch.Tensor, kernel: torch.Tensor | None, grid: tuple[int, int]) -> torch.Tensor:
    """Convolves the map of each channel `(B, heads, H * W, d)` with its head's kernel `(heads, 1, k, k)`."""
    if kernel is None:
        return x
    heads, dim = x.shape[1], x.shape[3]
    rows = x.transpose(1, 2).flatten(2).unflatten(1, grid)
    weight = kernel.repeat_interleave(dim, 0)
    out = nhwc_conv(rows, weight, padding=kernel.shape[-1] // 2, groups=heads * dim)
    return out.flatten(1, 2).unflatten(-1, (heads, dim)).transpose(1, 2)


def conv_keys(weights: torch.Tensor, kernel: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Convolves the map of each query's weights `(B, heads, N, H * W)` with its head's kernel."""
    heads, rows = weights.shape[1:3]
    maps = weights.transpose(1, 2).flatten(0, 1).unflatten(-1, grid)
    maps = F.conv2d(maps, kernel, padding=kernel.shape[-1] // 2, groups=heads)
    return maps.flatten(2).unflatten(0, (-1, rows)).transpose(1, 2)


def beside(extra: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
    """Places patches in the first half of the channels, preceded by extra tokens in the second half."""
    dim = extra.shape[-1]
    return torch.cat([F.pad(extra, (dim, 0)), F.pad(patches, (0, dim))], 2)


def put_block(block: torch.Tensor, matrix: torch.Tensor, prefix: int) -> torch.Tensor:
    """The matrix with the block of the patches replaced."""
    if not prefix:
        return block
    return torch.cat([matrix[..., :prefix, :], torch.cat([matrix[..., prefix:, :prefix], block], -1)], -2)


def bias_rows(bias: torch.Tensor | None, first: int, last: int | None) -> torch.Tensor | None:
    """The bias of some queries."""
    return bias if bias is None or bias.shape[-2] == 1 else bias[..., first:last, :]
