"""Stems that small networks learn from in few steps, where a patch embedding of one convolution does not."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

from torch import nn

from visionattn.models.layers import BatchNorm, PatchConv

__all__ = ["conv_stem", "tile_stem"]


def conv_stem(in_chans: int, dim: int, *, patch_size: int = 4, **dd: Any) -> nn.Sequential:
    """Patches of any power of two by two 3 x 3 convolutions for each halving (arXiv 2106.14881).

    `(B, H, W, in_chans) -> (B, H', W', dim)`, sides rounded up. With coarser stems mixers learn little in few steps.

    Args:
        in_chans: Channels of the picture.
        dim: Width of the map; the first convolution has half of it.
        patch_size: Side of the patches; 4 is what the diagnostics use.
        **dd: `device` and `dtype`.

    Raises:
        ValueError: If `patch_size` is no power of two above 1.
    """
    if patch_size < 2 or patch_size & (patch_size - 1):
        raise ValueError(f"patch_size must be a power of two above 1, got {patch_size}")
    conv: Callable[..., nn.Module] = partial(PatchConv, kernel_size=3, padding=1, bias=False, norm=BatchNorm, **dd)
    halvings = patch_size.bit_length() - 1
    layers: list[nn.Module] = []
    for number, (width, out) in enumerate(pairwise([in_chans, dim // 2] + [dim] * (2 * halvings - 1))):
        layers += [conv(width, out, stride=1 + (number + 1) % 2), nn.ReLU()]
    return nn.Sequential(*layers)


def tile_stem(in_chans: int, dim: int, *, patch_size: int, **dd: Any) -> nn.Sequential:
    """Patches by one convolution and one hidden layer: none sees another. `(B, H, W, in_chans) -> (B, H', W', dim)`.

    Args:
        in_chans: Channels of the picture.
        dim: Width of the map; the hidden layer has twice that.
        patch_size: Side of the patches, of which the picture is to be a multiple.
        **dd: `device` and `dtype`.
    """
    hidden = PatchConv(in_chans, 2 * dim, kernel_size=patch_size, stride=patch_size, bias=False, norm=BatchNorm, **dd)
    return nn.Sequential(hidden, nn.ReLU(), PatchConv(2 * dim, dim, kernel_size=1, stride=1, norm=BatchNorm, **dd))
