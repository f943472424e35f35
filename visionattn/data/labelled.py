"""The base of all data sets of labelled images."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from .base import PictureDataset
from .pipeline import Pipeline

__all__ = ["LabelledImages"]


class LabelledImages(PictureDataset, ABC):
    """Pictures with one label each. A sample is `{'inputs': (3, H, W) uint8, 'data_samples': {'label', 'index'}}`.

    Args:
        labels: Class number of each picture, `(N,)`.
        classes: Names of the classes.
        pipeline: Transforms as `visionattn.data.Pipeline` takes them.
        source: Where the pictures come from, for messages.

    Raises:
        ValueError: If there are no pictures, or a label is not a class number.
    """

    def __init__(
        self, labels: np.ndarray, classes: Sequence[str], pipeline: Sequence[dict[str, Any]], source: str
    ) -> None:
        self.labels = np.asarray(labels, np.int64)
        if not len(self.labels):
            raise ValueError(f"{type(self).__name__}: no images in {source}")
        super().__init__(classes, source)
        self.pipeline = Pipeline(pipeline)
        wrong = np.flatnonzero((self.labels < 0) | (self.labels >= len(classes)))
        if wrong.size:
            first = int(wrong[0])
            raise ValueError(
                f"{type(self).__name__}: {wrong.size} labels in {source} are out of range 0..{len(classes) - 1}; "
                f"the first is {self.labels[first]} at {self.describe(first)}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        inputs = self.pipeline(self.read(index), getattr(index, "seed", None), self.describe(index))
        return {"inputs": inputs, "data_samples": {"label": int(self.labels[index]), "index": int(index)}}

    def occurring_classes(self) -> set[int]:
        return set(np.unique(self.labels).tolist())

    def renumber(self, numbers: np.ndarray) -> None:
        self.labels = numbers[self.labels]

    def describe(self, index: int) -> str:
        """Names a picture in messages."""
        return f"image {int(index)}"

    @abstractmethod
    def read(self, index: int) -> np.ndarray:
        """The picture, `(H, W, 3)` uint8 in RGB."""
