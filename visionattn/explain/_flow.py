"""Products with attention matrices over all tokens of an image, whatever windows the attention runs in."""

import torch
from torch.nn import functional as F

from .positions import Places, Positions

__all__ = ["Flow", "regrid"]


class Flow:
    """The (tokens x tokens) matrix of one attention, applied without being formed.

    Tokens are numbered row by row on their grid; the extra ones come after it.

    Args:
        weights: `(B, windows, heads, N, M)`; heads are averaged.
        positions: Of the attention.
        prefix: Number of extra tokens.
    """

    def __init__(self, weights: torch.Tensor, positions: Positions, prefix: int) -> None:
        self.counts = tuple(places.grid[0] * places.grid[1] + prefix for places in (positions.queries, positions.keys))
        rows, columns = (
            self._numbers(places, count)
            for places, count in zip((positions.queries, positions.keys), self.counts, strict=True)
        )
        if positions.shared:
            self.weights, self.rows, self.columns = weights.mean(2), rows[:, :, 0], columns[:, :, 0]
        else:  # heads that see windows of their own
            self.weights = weights.flatten(1, 2) / weights.shape[2]
            self.rows, self.columns = rows.flatten(1, 2), columns.flatten(1, 2)

    @staticmethod
    def _numbers(places: Places, count: int) -> torch.Tensor:
        """Maps padding to one additional token."""
        index = places.index
        return torch.where((index < 0) | (index >= count), count, index)

    def __matmul__(self, source: torch.Tensor) -> torch.Tensor:
        """`(B, keys, D) -> (B, queries, D)`."""
        results = []
        # Images may share one map.
        parts = (part.expand(len(source), *part.shape[1:]) for part in (self.weights, self.rows, self.columns))
        for weights, rows, columns, values in zip(*parts, source, strict=True):
            known = torch.cat((values, values.new_zeros(1, values.shape[1])))
            moved = weights.to(values.dtype) @ known[columns]
            result = values.new_zeros(self.counts[0] + 1, values.shape[1])
            results.append(result.index_add_(0, rows.flatten(), moved.flatten(0, 1))[:-1])
        return torch.stack(results)


def regrid(x: torch.Tensor, old: tuple[int, int], new: tuple[int, int]) -> torch.Tensor:
    """Rows of tokens of one grid to those of another: the mean of the children, or the parent. `(B, tokens, D)`.

    A grid that was padded to whole cells of the coarser one, or cropped to them, has them as they were made; between
    others cells overlap.
    """
    if old == new:
        return x
    area = old[0] * old[1]
    patches = x[:, :area].mT.unflatten(2, old)
    steps = [_step(max(sides), min(sides)) for sides in zip(old, new, strict=True)]
    if all(steps) and old[0] >= new[0] and old[1] >= new[1]:
        patches = F.avg_pool2d(patches, steps, ceil_mode=True, count_include_pad=False)[..., : new[0], : new[1]]
    elif all(steps) and old[0] <= new[0] and old[1] <= new[1]:
        rows, columns = (
            torch.arange(side, device=x.device).div(step, rounding_mode="floor").clamp_max(coarse - 1)
            for side, step, coarse in zip(new, steps, old, strict=True)
        )
        patches = patches[..., rows[:, None], columns]
    else:
        patches = F.adaptive_avg_pool2d(patches, new)
    return torch.cat((patches.flatten(2).mT, x[:, area:]), 1)


def _step(fine: int, coarse: int) -> int:
    """The step between two sides, a power of two where one of them was padded or cropped to it; 0: there is none."""
    if fine % coarse == 0:
        return fine // coarse
    powers = [1 << power for power in range(1, fine.bit_length())]
    padded = [step for step in powers if -(-fine // step) == coarse]
    return next(iter(padded + [step for step in powers if fine // step == coarse]), 0)
