"""Stems that small networks learn from in few steps, where a patch embedding of one convolution does not."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from visionattn.models.layers import BatchNorm, PatchConv

__all__ = ["KnownTiles", "conv_stem"]


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


class KnownTiles(nn.Module):
    """Tokens of tiles, each from an encoder that learns no more. `(B, H, W, in_chans) -> (B, H / side, W / side, dim)`.

    No tile sees another. A linear layer leads from the encoder's features to the width.

    Args:
        in_chans: Channels of the picture; what the encoder takes.
        dim: Width of the map.
        encoder: A trained stem; a copy of it stays in evaluation mode.
        side: Of the tiles, a divisor of the picture's.
        device: Of the linear layer.
        dtype: Of the linear layer.
    """

    def __init__(
        self,
        in_chans: int,
        dim: int,
        *,
        encoder: nn.Module,
        side: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.side = side
        self.encoder = deepcopy(encoder).requires_grad_(False).eval()
        with torch.no_grad():
            features = self.encoder(torch.zeros(1, side, side, in_chans)).numel()
        self.proj = nn.Linear(features, dim, device=device, dtype=dtype)

    def train(self, mode: bool = True) -> "KnownTiles":
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tiles = x.unflatten(2, (-1, self.side)).unflatten(1, (-1, self.side)).transpose(2, 3)
        features = self.encoder(tiles.flatten(0, 2)).flatten(1)
        return self.proj(features.view(*tiles.shape[:3], -1))
