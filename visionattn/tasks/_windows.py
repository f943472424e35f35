"""Scores of whole images from a network applied to windows."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

__all__ = ["SlidingWindows", "cut"]


class SlidingWindows:
    """Scores of pictures, `(B, 3, H, W) -> (B, num_classes, H, W)`: at once or by a sliding window, mirrored too.

    Args:
        crop: Height and width of the window; none takes the whole picture.
        stride: How far it moves down and to the right; two thirds of the window without it.
        flip: Whether to average the probabilities with those of the mirrored picture.
    """

    def __init__(
        self,
        crop: int | tuple[int, int] | None = None,
        stride: int | tuple[int, int] | None = None,
        flip: bool = False,
    ) -> None:
        window, step = _pair("crop", crop), _pair("stride", stride)
        if window is None and step is not None:
            raise ValueError("inference.stride needs inference.crop")
        if window is not None:
            step = step or (max(2 * window[0] // 3, 1), max(2 * window[1] // 3, 1))
            if not all(0 < s <= c for s, c in zip(step, window, strict=True)):
                raise ValueError(
                    "inference.crop and stride must be (height, width) with 0 < stride <= crop, got "
                    f"crop={window}, stride={step}"
                )
        self.crop, self.stride, self.flip = window, step, flip

    def __call__(self, network: Any, x: torch.Tensor) -> torch.Tensor:
        scores = self._slide(network, x)
        if self.flip:
            mirrored = self._slide(network, x.flip(-1)).flip(-1)
            scores = (scores.softmax(1) + mirrored.softmax(1)) / 2
        return scores

    def _slide(self, network: Any, x: torch.Tensor) -> torch.Tensor:
        if self.crop is None or self.stride is None:
            return network(x)
        total, count = 0, x.new_zeros(x.shape[-2:])
        rows, columns = (list(_windows(*sides)) for sides in zip(x.shape[-2:], self.crop, self.stride, strict=True))
        for window in ((..., row, column) for row in rows for column in columns):
            logits = network(x[window])
            if isinstance(total, int):
                total = logits.new_zeros((*logits.shape[:2], *x.shape[-2:]))
            total[window] += logits
            count[window] += 1
        return total / count


def _windows(length: int, window: int, stride: int) -> Iterator[slice]:
    """Windows that cover a length, the last one aligned with its end."""
    for start in range(0, max(length - window, 0) + stride, stride):
        stop = min(start + window, length)
        yield slice(max(stop - window, 0), stop)
        if stop == length:
            return


def _pair(key: str, value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    sides = (value, value) if isinstance(value, int) else tuple(value) if isinstance(value, (list, tuple)) else ()
    if len(sides) != 2 or not all(isinstance(side, int) and not isinstance(side, bool) for side in sides):
        raise ValueError(f"inference.{key} must be (height, width) or one number for both, got {value!r}")
    return sides


def cut(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """The first rows and columns."""
    return x[..., : size[0], : size[1]]
