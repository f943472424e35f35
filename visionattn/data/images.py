"""What all data sets of labelled pictures share, and the one way a picture is read from a file."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from torch.utils.data import Dataset

from .pipeline import Pipeline

__all__ = ["IMAGE_SUFFIXES", "LabelledImages", "read_image"]

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


def read_image(path: str | Path) -> np.ndarray:
    """Reads a picture as `(H, W, 3)` uint8 in RGB.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is empty or no picture.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no image at {path}")
    content = np.fromfile(path, np.uint8)
    if content.size == 0:
        raise ValueError(f"cannot read image {path}: the file is empty (0 bytes)")
    image = cv2.imdecode(content, cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f"cannot read image {path}: it is truncated or in no format that OpenCV knows")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


class LabelledImages(Dataset, ABC):
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
        self.metainfo = {"classes": tuple(classes)}
        self.pipeline = Pipeline(pipeline)
        if not len(self.labels):
            raise ValueError(f"{type(self).__name__}: no images in {source}")
        wrong = np.flatnonzero((self.labels < 0) | (self.labels >= len(classes)))
        if wrong.size:
            first = int(wrong[0])
            raise ValueError(
                f"{type(self).__name__}: {wrong.size} labels in {source} are out of range 0..{len(classes) - 1}; "
                f"the first is {self.labels[first]} at image {self.describe(first)}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        inputs = self.pipeline(self.read(index), seed=getattr(index, "seed", None))
        return {"inputs": inputs, "data_samples": {"label": int(self.labels[index]), "index": int(index)}}

    def describe(self, index: int) -> str:
        """Names a picture in messages."""
        return str(index)

    @abstractmethod
    def read(self, index: int) -> np.ndarray:
        """The picture, `(H, W, 3)` uint8 in RGB."""
