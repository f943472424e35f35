"""Scenes composed on the fly: handwritten digits on photographs, with boxes, instance masks and semantic masks.

The digits ship with scikit-learn, the photographs with scikit-learn and scikit-image: a detection and segmentation data
set that needs no download. No digit and no photograph is in both splits.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import cv2
import numpy as np
from mmengine.registry import DATASETS
from torch.utils.data import Dataset

from .objects import Objects
from .pipeline import DetectionPipeline, SegmentationPipeline

__all__ = ["DigitScenes"]

DIGITS = tuple(str(digit) for digit in range(10))
# Photographs by split: those of scikit-learn end in .jpg, the others are functions of skimage.data.
PHOTOGRAPHS = {
    "train": (
        "china.jpg",
        "astronaut",
        "rocket",
        "brick",
        "grass",
        "camera",
        "immunohistochemistry",
        "stereo_motorcycle",
    ),
    "test": ("flower.jpg", "coffee", "chelsea", "gravel", "coins"),
}
_SPLITS = tuple(PHOTOGRAPHS)
_LENGTHS = {"train": 2000, "test": 200}
_TASKS = ("detection", "instance", "semantic")
_VISIBLE = 0.5  # a digit may hide at most this share of another


@DATASETS.register_module()
class DigitScenes(Dataset):
    """One to six digits of random size, place and colour on a piece of a photograph, some in front of others.

    A scene is a function of (seed, split, index) alone. Boxes and masks tell what can be seen of a digit.

    Args:
        split: `train` or `test`; samples of the test split also hold the untouched annotations.
        task: `detection` (boxes), `instance` (boxes and masks) or `semantic` (a mask of class numbers, 0 for the
            background).
        pipeline: Transforms; pictures come as `(size, size, 3)` uint8.
        size: Side of the picture in pixels, at least 32.
        length: How many scenes; 2000 to train and 200 to test without it.
        seed: Gives other scenes of the same digits and photographs.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        split: str,
        task: str,
        pipeline: Sequence[dict[str, Any]] = (),
        size: int = 128,
        length: int | None = None,
        seed: int = 0,
    ) -> None:
        if split not in _SPLITS:
            raise ValueError(f"split must be 'train' or 'test', got {split!r}")
        if task not in _TASKS:
            raise ValueError(f"task must be one of {', '.join(_TASKS)}, got {task!r}")
        length = _LENGTHS[split] if length is None else length
        if size < 32 or length < 1:
            raise ValueError(f"size must be at least 32 and length at least 1, got size={size}, length={length}")
        self.split, self.task, self.size, self.length, self.seed = split, task, size, length, seed
        kind = SegmentationPipeline if task == "semantic" else DetectionPipeline
        self.pipeline = kind(pipeline, original=split == "test")
        self.metainfo = {"classes": ("background", *DIGITS) if task == "semantic" else DIGITS}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.length:
            raise IndexError(f"no scene {index} of {self.length}")
        image, objects = compose(self.split, self.size, (self.seed, _SPLITS.index(self.split), int(index)))
        annotation: Objects | np.ndarray = objects
        if self.task == "detection":
            annotation = Objects(objects.boxes, objects.labels, area=objects.area)
        elif self.task == "semantic":
            # Visible parts do not overlap: a pixel belongs to one digit or none.
            annotation = (objects.masks * (objects.labels + 1)[:, None, None]).sum(axis=0).astype(np.uint8)
        return self.pipeline(image, annotation, int(index), getattr(index, "seed", None))


def compose(split: str, size: int, seed: Sequence[int]) -> tuple[np.ndarray, Objects]:
    """Composes one scene.

    Args:
        split: Whose digits and photographs to take.
        size: Side of the picture.
        seed: Non-negative integers, the only source of randomness.

    Returns:
        The picture, `(size, size, 3)` uint8, and the digits in it with masks of their visible parts.
    """
    rng = np.random.default_rng(seed)
    digits, classes = _digits(split)
    image = _background(rng, _photographs(split), size).astype(np.float32)
    owner = np.zeros((size, size), np.uint8)  # whose pixel it is: 0 the photograph's, k the k-th digit's
    labels: list[int] = []
    whole: list[int] = []  # pixels of each digit when nothing stood in front of it yet
    for _ in range(rng.integers(1, 7)):
        number = rng.integers(len(digits))
        side = round(size * rng.uniform(0.18, 0.5))
        left, top = rng.integers(-side // 8, size - side + side // 8 + 1, 2)
        x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + side, size), min(top + side, size)
        ink = cv2.resize(digits[number], (side, side), interpolation=cv2.INTER_CUBIC).clip(0, 1)
        ink = ink[y0 - top : y1 - top, x0 - left : x1 - left]
        place = np.s_[y0:y1, x0:x1]
        covered = owner.copy()
        covered[place][ink > 0.5] = len(labels) + 1
        *seen, own = np.bincount(covered.ravel(), minlength=len(labels) + 2)[1:]
        if any(pixels < _VISIBLE * before for pixels, before in zip(seen, whole, strict=True)):
            continue  # it would hide too much of another
        owner = covered
        alpha = np.clip(ink * 2 - 0.25, 0, 1)[..., None]
        image[place] += alpha * (_colour(rng, image[place].mean()) - image[place])
        labels.append(int(classes[number]))
        whole.append(own)
    masks = owner[None] == np.arange(1, len(labels) + 1, dtype=np.uint8)[:, None, None]
    boxes = [cv2.boundingRect(mask.view(np.uint8)) for mask in masks]
    boxes = [(x, y, x + w, y + h) for x, y, w, h in boxes]
    return np.rint(image).astype(np.uint8), Objects(boxes, labels, masks, area=masks.sum(axis=(1, 2)))


def _background(rng: np.random.Generator, photographs: Sequence[np.ndarray], size: int) -> np.ndarray:
    """A square piece of a photograph, at random place, size and side."""
    photograph = photographs[rng.integers(len(photographs))]
    height, width = photograph.shape[:2]
    side = int(min(height, width) * rng.uniform(0.4, 1.0))
    top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
    piece = photograph[top : top + side, left : left + side]
    piece = piece[:, ::-1] if rng.random() < 0.5 else piece
    return cv2.resize(piece, (size, size), interpolation=cv2.INTER_AREA if side > size else cv2.INTER_LINEAR)


def _colour(rng: np.random.Generator, around: float) -> np.ndarray:
    """A random colour that stands out: light on dark places, dark on light ones."""
    colour = rng.uniform(0, 90, 3) if around > 127 else rng.uniform(165, 255, 3)
    colour[rng.integers(3)] = rng.uniform(0, 255)
    return colour.astype(np.float32)


@cache
def _digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Digits of a split as `(N, 8, 8)` float32 of 0..1, and their classes; every fifth is for testing."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    chosen = (np.arange(len(bunch.target)) % 5 == 4) == (split == "test")
    return (bunch.images[chosen] / 16).astype(np.float32), bunch.target[chosen]


@cache
def _photographs(split: str) -> tuple[np.ndarray, ...]:
    """Photographs of a split as `(H, W, 3)` uint8, the longer side at most 512."""
    import skimage.data
    from sklearn.datasets import load_sample_image

    def read(name: str) -> np.ndarray:
        image = load_sample_image(name) if name.endswith(".jpg") else getattr(skimage.data, name)()
        image = image[0] if isinstance(image, tuple) else image  # the left one of the motorcycle's two
        image = image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)
        scale = min(512 / max(image.shape[:2]), 1.0)
        return cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)

    return tuple(read(name) for name in PHOTOGRAPHS[split])
