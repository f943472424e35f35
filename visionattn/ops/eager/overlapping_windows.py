"""Overlapping windows of a map, whose gradient PyTorch would add up number by number."""

from typing import Any

import torch

from visionattn.ops._modes import needs_formula

from ._function import Function, formula_gradients

__all__ = ["OverlappingWindows", "overlapping_windows"]

Pair = tuple[int, int]


def overlapping_windows(x: torch.Tensor, window: Pair, step: Pair) -> torch.Tensor:
    """Windows of a size at steps from each other, as a view. `(B, H, W, ...) -> (B, rows, columns, h, w, ...)`."""
    windows = x.unfold(1, window[0], step[0]).unfold(2, window[1], step[1])
    return windows.permute(0, 1, 2, *range(x.ndim, x.ndim + 2), *range(3, x.ndim))


class OverlappingWindows(Function):
    """`overlapping_windows`, copied."""

    @staticmethod
    def forward(x: torch.Tensor, window: Pair, step: Pair) -> torch.Tensor:
        return overlapping_windows(x, window, step).contiguous()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        x, ctx.window, ctx.step = inputs
        ctx.shape = x.shape

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, None, None]:
        if torch.is_grad_enabled() or needs_formula():
            x = grad.new_zeros(ctx.shape)
            found = formula_gradients(lambda x: overlapping_windows(x, ctx.window, ctx.step), (x,), (grad,))
            return found[0], None, None
        # The map is cut into tiles of one step. A window covers a few of them: its part of each is added for all
        # windows at once.
        (down, right), shape = ctx.step, ctx.shape
        pieces = [-(-side // step) for side, step in zip(ctx.window, ctx.step, strict=True)]
        rows, columns = (grad.size(axis) + count - 1 for axis, count in enumerate(pieces, start=1))
        total = grad.new_zeros(shape[0], rows, down, columns, right, *shape[3:])
        for row in range(pieces[0]):
            for column in range(pieces[1]):
                piece = grad[:, :, :, row * down : (row + 1) * down, column * right : (column + 1) * right]
                tiles = total[:, row : row + grad.size(1), : piece.size(3), column : column + grad.size(2)]
                tiles[:, :, :, :, : piece.size(4)] += piece.transpose(2, 3)
        return total.flatten(3, 4).flatten(1, 2)[:, : shape[1], : shape[2]], None, None
