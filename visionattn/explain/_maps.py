"""Which module outputs are feature maps, and their memory layout."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .tokens import patch_of, tokens

__all__ = ["MapFinder", "MapLayout", "modules_with_maps"]

# Parts of attention whose outputs are not maps, though they may have the sizes of one.
_NO_MAPS = ("q_norm", "k_norm", "norm_q", "norm_k", "attn_drop", "softmax")
_NO_MAP_TYPES = (nn.Dropout, nn.Identity, nn.Softmax)
_CHANNELS_FIRST = (nn.Conv2d, nn.BatchNorm2d, nn.AvgPool2d, nn.MaxPool2d, nn.GroupNorm)


def modules_with_maps(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules whose outputs may be maps, with their names."""
    for name, module in model.named_modules():
        if not isinstance(module, _NO_MAP_TYPES) and name.rpartition(".")[2] not in _NO_MAPS:
            yield name, module


@dataclass(frozen=True)
class MapLayout:
    """The memory layout of a map.

    Args:
        grid: `(H, W)`.
        channels: Axis of the channels: 1 in `(B, C, H, W)`, 3 in `(B, H, W, C)`, 2 in `(B, prefix + H * W, C)`.
        prefix: Extra tokens before the others.
    """

    grid: tuple[int, int]
    channels: int
    prefix: int = 0

    def lay(self, patches: torch.Tensor, extra: torch.Tensor) -> torch.Tensor:
        """Values of patches `(B, H, W)` and of extra tokens `(B, prefix)`, to broadcast with the map."""
        if self.channels == 2:
            patches = torch.cat((extra.to(patches), patches.flatten(1)), 1)
        return patches.unsqueeze(self.channels)

    def along_channels(self, x: torch.Tensor) -> torch.Tensor:
        """Values of the channels `(C,)`, to broadcast with the map."""
        return x.view([-1 if axis == self.channels else 1 for axis in range(3 if self.channels == 2 else 4)])

    def channels_first(self, x: torch.Tensor) -> torch.Tensor:
        """The map as `(B, C, H, W)`, without the extra tokens."""
        if self.channels == 2:
            return x[:, self.prefix :].mT.unflatten(2, self.grid)
        return x.movedim(self.channels, 1)


class MapFinder:
    """Recognises maps by their sizes: those of the image divided by a patch and a power of two.

    Args:
        model: The network, whose parts say how large their patches are.
        x: The images.
    """

    def __init__(self, model: nn.Module, x: torch.Tensor) -> None:
        self.batch = len(x)
        height, width = x.shape[-2:]
        patches = {patch_of(module) for module in model.modules()} - {None}
        sides = {(1, 1), *(patch for patch in patches if patch is not None)}
        steps = [(rows << power, columns << power) for rows, columns in sides for power in range(12)]
        self.grids = {(-(-height // rows), -(-width // columns)) for rows, columns in steps}
        self.grids |= {(max(height // rows, 1), max(width // columns, 1)) for rows, columns in steps}
        # How much of the image a grid spans; of several steps that lead to it the one that fits best.
        self.spans: dict[tuple[int, int], tuple[float, float]] = {}
        for grid in self.grids:
            fits = [
                (grid[0] * rows / height, grid[1] * columns / width)
                for rows, columns in steps
                if grid[0] in (-(-height // rows), height // rows)
                and grid[1] in (-(-width // columns), width // columns)
            ]
            self.spans[grid] = min(fits, key=lambda span: max(abs(span[0] - 1), abs(span[1] - 1)), default=(1.0, 1.0))
        # Of sizes with the same area the one that was seen last.
        self._areas = {rows * columns: (rows, columns) for rows, columns in sorted(self.grids) if rows * columns > 1}
        self._prefixes = sorted({tokens(model, (height, width)).prefix, 0}, reverse=True)

    def find(self, module: nn.Module, out: Any) -> MapLayout | None:
        """The layout of a module's output, if that is a map."""
        if not isinstance(out, torch.Tensor) or out.shape[:1] != (self.batch,):
            return None
        if out.ndim == 3:
            # One token is an extra one that has been cut out.
            known = ((prefix, self._areas.get(out.shape[1] - prefix)) for prefix in self._prefixes)
            return next((MapLayout(grid, 2, prefix) for prefix, grid in known if grid is not None), None)
        if out.ndim != 4:
            return None
        first, last = ((out.shape[axis], out.shape[axis + 1]) for axis in (2, 1))
        if first in self.grids and (last not in self.grids or isinstance(module, _CHANNELS_FIRST)):
            grid, channels = first, 1
        elif last in self.grids:
            grid, channels = last, 3
        else:
            return None
        if grid != (1, 1):
            self._areas[grid[0] * grid[1]] = grid
        return MapLayout(grid, channels)
