"""The pictures that scenes are composed of: handwritten digits, and clothes of Fashion-MNIST where it is installed."""

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

from visionattn.utils.arguments import check_choice

from ...fashion_mnist import FashionMNIST
from ..digits import load_split

__all__ = ["DIGITS", "SOURCES", "Pictures", "find_source", "load_pictures"]

SOURCES = ("digits+fashion", "digits")
DIGITS = tuple(range(10))
# Pictures of clothes in use, of each class: enough that none is met often, few enough to be resized at once.
_CLOTHES = {"train": 300, "test": 200}


@dataclass(frozen=True)
class Pictures:
    """Pictures of one size and one split.

    Args:
        ink: `(N, size, size)` float32 from 0, the background, to 1.
        classes: `(N,)`: 0 to 9 are digits, 10 to 19 clothes.
    """

    ink: np.ndarray
    classes: np.ndarray

    def of(self, *classes: int) -> "Pictures":
        """Those of some classes."""
        chosen = np.isin(self.classes, classes)
        return Pictures(self.ink[chosen], self.classes[chosen])

    def first(self, count: int) -> "Pictures":
        """The first pictures of each class."""
        chosen = [np.flatnonzero(self.classes == one)[:count] for one in np.unique(self.classes)]
        return Pictures(self.ink[np.concatenate(chosen)], self.classes[np.concatenate(chosen)])


def find_source() -> str:
    """`digits+fashion` where the files of Fashion-MNIST are installed, otherwise `digits`."""
    try:
        FashionMNIST("test", (), download=False)
    except FileNotFoundError:
        return "digits"
    return "digits+fashion"


@cache
def load_pictures(split: str, size: int, source: str) -> Pictures:
    """The pictures of a split, resized.

    The split is one by identity: of the digits every fifth is for testing; of Fashion-MNIST the first 300 training
    pictures of each class are for training and the first 200 test pictures for testing.

    Args:
        split: `train` or `test`.
        size: Side in pixels.
        source: A name in `SOURCES`.

    Raises:
        ValueError: If `split` or `source` is unknown.
        FileNotFoundError: If the source asks for Fashion-MNIST and its files are not installed.
    """
    check_choice("split", split, ("train", "test"))
    check_choice("source", source, SOURCES)
    images, classes = load_split(split)
    if source == "digits":
        return Pictures(_resize(images, size), classes)
    clothes = FashionMNIST(split, (), download=False)
    chosen = np.concatenate([np.flatnonzero(clothes.labels == one)[: _CLOTHES[split]] for one in range(10)])
    worn = clothes.images[chosen].astype(np.float32) / 255
    ink = np.concatenate([_resize(images, size), _resize(worn, size)])
    return Pictures(ink, np.concatenate([classes, 10 + clothes.labels[chosen]]))


def _resize(images: np.ndarray, size: int) -> np.ndarray:
    how = cv2.INTER_AREA if size < images.shape[1] else cv2.INTER_CUBIC
    return np.stack([cv2.resize(image, (size, size), interpolation=how) for image in images]).clip(0, 1)
