"""The objects of one image, which detection data sets read and pipelines transform along with the image."""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

__all__ = ["Objects"]


@dataclass(frozen=True, init=False)
class Objects:
    """N objects of one picture, in pixels.

    Args:
        boxes: `(N, 4)`, left, top, right, bottom.
        labels: `(N,)` class numbers from 0 on.
        masks: `(N, H, W)` bool; none where only boxes are known.
        iscrowd: `(N,)` bool, whether a box stands for a crowd that is neither learnt nor counted as missed; no crowds
            without it.
        area: `(N,)`, by which objects are called small, medium or large; that of the boxes without it.
    """

    boxes: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None
    iscrowd: np.ndarray
    area: np.ndarray

    def __init__(
        self,
        boxes: ArrayLike,
        labels: ArrayLike,
        masks: ArrayLike | None = None,
        iscrowd: ArrayLike | None = None,
        area: ArrayLike | None = None,
    ) -> None:
        def put(name: str, value: np.ndarray | None) -> None:
            object.__setattr__(self, name, value)

        put("boxes", np.asarray(boxes, np.float32).reshape(-1, 4))
        put("labels", np.asarray(labels, np.int64).reshape(-1))
        put("masks", None if masks is None else np.asarray(masks, bool))
        put("iscrowd", np.zeros(len(self), bool) if iscrowd is None else np.asarray(iscrowd, bool).reshape(-1))
        sides = (self.boxes[:, 2:] - self.boxes[:, :2]).astype(np.float64)
        put("area", sides.prod(axis=1) if area is None else np.asarray(area, np.float64).reshape(-1))

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, chosen: np.ndarray) -> "Objects":
        """The objects selected by indices or flags."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        parts: dict[str, Any] = {name: None if value is None else value[chosen] for name, value in values.items()}
        return Objects(**parts)

    def clipped(self, height: int, width: int) -> "Objects":
        """The objects with boxes clipped to the image; those outside end up with zero area."""
        boxes = self.boxes.clip(0, np.array([width, height, width, height], np.float32))
        return Objects(boxes, self.labels, self.masks, self.iscrowd, self.area)

    def tensors(self) -> dict[str, torch.Tensor]:
        """All fields as tensors, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in values.items() if value is not None
        }
