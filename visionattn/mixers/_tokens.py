"""Any mixer on tokens `(B, N, C)`, the format of most vision transformers."""

import math
from typing import Any

import torch
from torch import nn

__all__ = ["Tokens"]


class Tokens(nn.Module):
    """A mixer on the tokens of a grid in raster order, extra tokens first. `(B, prefix + H * W, C)`, same out.

    A mixer of all tokens (one that has `forward_tokens`) mixes the extra ones too. A mixer of maps has no place for
    them: it mixes the grid, and the extra ones come out as they went in. The state dict is the mixer's own, under
    `mixer.`.

    Args:
        mixer: Any mixer, as `WindowAttention(384, num_heads=6)`.
        grid: Height and width of the grid; by default it is a square. Exporting for any N needs it.
        prefix: Number of extra tokens, such as the class token and registers.

    Raises:
        ValueError: If `prefix` is negative or a side of the grid is below 1.
    """

    def __init__(self, mixer: nn.Module, grid: tuple[int, int] | None = None, *, prefix: int = 0) -> None:
        super().__init__()
        if prefix < 0:
            raise ValueError(f"prefix must be at least 0, got {prefix}")
        if grid is not None and (len(grid) != 2 or min(grid) < 1):
            raise ValueError(f"grid must be (H, W), at least 1 each, got {grid}")
        self.mixer = mixer
        self.grid = None if grid is None else (grid[0], grid[1])
        self.prefix = prefix

    def forward(self, x: torch.Tensor, grid: tuple[int, int] | None = None) -> torch.Tensor:
        """The tokens after mixing.

        Args:
            x: `(B, prefix + H * W, C)`.
            grid: `(H, W)` of these tokens, if not as for the constructor.

        Raises:
            ValueError: If these are no tokens, or not as many as the grid has.
        """
        if x.ndim != 3:
            raise ValueError(f"Tokens takes tokens (B, N, C), got {tuple(x.shape)}: give maps to the mixer itself")
        height, width = grid or self.grid or self._square(x)
        if x.shape[1] != self.prefix + height * width:
            raise ValueError(f"{x.shape[1]} tokens are not {self.prefix} of prefix and a grid of {height} x {width}")
        if hasattr(self.mixer, "forward_tokens"):
            mixer: Any = self.mixer
            return mixer.forward_tokens(x, (height, width), self.prefix)
        y = self.mixer(x[:, self.prefix :].unflatten(1, (height, width))).flatten(1, 2)
        return torch.cat([x[:, : self.prefix], y], 1) if self.prefix else y

    def _square(self, x: torch.Tensor) -> tuple[int, int]:
        count = max(x.shape[1] - self.prefix, 0)
        side = math.isqrt(count)
        if side < 1 or side * side != count:
            raise ValueError(
                f"{x.shape[1]} tokens less {self.prefix} of prefix are no square: give Tokens grid=(H, W), or prefix="
            )
        return side, side

    def extra_repr(self) -> str:
        return f"grid={self.grid}, prefix={self.prefix}"
