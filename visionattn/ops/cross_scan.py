"""The scan orders over a map: along rows, along columns, and both reversed."""

import torch

__all__ = ["DIRECTIONS", "cross_merge", "cross_scan"]

# How many orders there may be.
DIRECTIONS = (1, 2, 4)


def cross_scan(x: torch.Tensor, directions: int) -> torch.Tensor:
    """The positions of a map as sequences. `(B, H, W, C) -> (directions, B, H * W, C)`.

    Args:
        x: The map.
        directions: 1: row by row. 2: and from the last position to the first. 4: and both column by column.
    """
    _check(directions)
    sequence = x.flatten(1, 2)
    if directions == 1:
        return sequence.unsqueeze(0)
    orders = [sequence, sequence.flip(1)]
    if directions == 4:
        columns = x.transpose(1, 2).flatten(1, 2)
        orders += [columns, columns.flip(1)]
    return torch.stack(orders)


def cross_merge(y: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """The sum over the orders of `cross_scan` at each position. `(directions, B, H * W, C) -> (B, H, W, C)`.

    Args:
        y: A sequence in each order.
        grid: `(H, W)`.
    """
    _check(len(y))
    out = y[0].unflatten(1, grid)
    if len(y) > 1:
        out = (y[0] + y[1].flip(1)).unflatten(1, grid)
    if len(y) > 2:
        out = out + (y[2] + y[3].flip(1)).unflatten(1, (grid[1], grid[0])).transpose(1, 2)
    return out


def _check(directions: int) -> None:
    if directions not in DIRECTIONS:
        raise ValueError(f"directions must be one of 1, 2, 4, got {directions}")
