"""The second input of networks that take one, from the samples of a batch."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import pad

__all__ = ["batch_condition", "pad_like"]


def batch_condition(samples: Sequence[dict[str, Any]] | None, inputs: torch.Tensor) -> torch.Tensor | None:
    """The conditions of a batch; none if its samples have none.

    Args:
        samples: Each may hold `condition`: a vector `(D,)`, or a map `(S, h, w)`. A map of the picture's own `size`
            is padded as the pictures are.
        inputs: The pictures, `(B, C, H, W)`.

    Raises:
        ValueError: If some samples lack it, or they have different shapes.
    """
    given: list[Any] = [sample.get("condition") for sample in samples or ()]
    missing = [number for number, condition in enumerate(given) if condition is None]
    if len(missing) == len(given):
        return None
    if missing:
        raise ValueError(f"condition is missing: sample {missing[0]} of the batch has none, others have one")
    sizes = [tuple(map(int, sample["size"])) for sample in samples or ()]
    maps = [
        pad_like(condition, inputs) if condition.ndim == 3 and condition.shape[1:] == size else condition
        for condition, size in zip(given, sizes, strict=True)
    ]
    shapes = sorted({tuple(condition.shape) for condition in maps})
    if len(shapes) > 1:
        raise ValueError(f"condition must have one shape in a batch, got {', '.join(map(str, shapes))}")
    return torch.stack(maps)


def pad_like(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A map `(..., h, w)` with zeros below and to the right, up to the height and width of another."""
    (h, w), (height, width) = x.shape[-2:], like.shape[-2:]
    return pad(x, (0, width - w, 0, height - h)) if (h, w) != (height, width) else x
