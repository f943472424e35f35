"""Synthetic digits: scenes of handwritten digits on photographs, with boxes, instance masks and semantic masks.

The digits ship with scikit-learn, the photographs with scikit-learn and scikit-image: a detection and segmentation data
set that needs no download. No digit and no photograph is in both splits.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import cv2
import numpy as np
from mmengine.registry import DATASETS

from ..base import PictureDataset
from ..objects import Objects
from ..pipeline import DetectionPipeline, SegmentationPipeline
from .composing import Cutout, compose, load_photographs, square_piece

__all__ = ["SyntheticDigits", "load_split"]

DIGITS = tuple(str(digit) for digit in range(10))
PHOTOGRAPHS = {
    "train": (
        *("china.jpg", "astronaut", "rocket", "brick", "grass", "camera", "immunohistochemistry"),
        *("stereo_motorcycle", "colorwheel", "retina", "hubble_deep_field", "moon", "cell"),
    ),
    "test": ("flower.jpg", "coffee", "chelsea", "gravel", "coins"),
}
_SPLITS = tuple(PHOTOGRAPHS)
_LENGTHS = {"train": 2000, "test": 200}
_TASKS = ("detection", "instance", "semantic")


@DATASETS.register_module()
class SyntheticDigits(PictureDataset):
    """Digits of random size, place and colour on a piece of a photograph, some in front of others.

    A scene is a function of (seed, split, index) alone, with `renew` also of the epoch. Boxes and masks tell what can
    be seen of a digit.

    Args:
        split: `train` or `test`; samples of the test split also hold the original annotations.
        task: `detection` (boxes), `instance` (boxes and masks) or `semantic` (a mask of class numbers, 0 for the
            background).
        pipeline: Transforms; pictures come as `(size, size, 3)` uint8.
        size: Side of the picture in pixels, at least 32.
        digits: Fewest and most digits in a scene; those that would hide too much of others are left out. Scenes with
            many teach more at the same cost.
        length: How many scenes; 2000 to train and 200 to test without it.
        seed: Gives other scenes of the same digits and photographs.
        renew: Whether each epoch has new scenes, drawn by `SeededSampler`: a network that meets a scene again learns
            which colour was which digit.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        split: str,
        task: str,
        pipeline: Sequence[dict[str, Any]] = (),
        size: int = 128,
        digits: tuple[int, int] = (1, 6),
        length: int | None = None,
        seed: int = 0,
        renew: bool = False,
    ) -> None:
        if split not in _SPLITS:
            raise ValueError(f"split must be 'train' or 'test', got {split!r}")
        if task not in _TASKS:
            raise ValueError(f"task must be one of {', '.join(_TASKS)}, got {task!r}")
        length = _LENGTHS[split] if length is None else length
        if size < 32 or length < 1:
            raise ValueError(f"size must be at least 32 and length at least 1, got size={size}, length={length}")
        if len(digits) != 2 or not 0 <= digits[0] <= digits[1]:
            raise ValueError(f"digits must be (fewest, most) with 0 <= fewest <= most, got {digits}")
        self.split, self.task, self.size, self.length, self.seed, self.renew = split, task, size, length, seed, renew
        self.digits = (digits[0], digits[1])
        kind: Any = SegmentationPipeline if task == "semantic" else DetectionPipeline
        self.pipeline = kind(pipeline, original=split == "test")
        super().__init__(("background", *DIGITS) if task == "semantic" else DIGITS, "synthetic digits")

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.length:
            raise IndexError(f"no scene {index} of {self.length}")
        drawn = getattr(index, "seed", None)
        source: tuple[int, ...] = (self.seed, _SPLITS.index(self.split), int(index))
        if self.renew:
            if drawn is None:
                raise ValueError("renew=True needs sampler.type=SeededSampler, which tells scenes the epoch")
            source = (*source, drawn)
        image, objects = digit_scene(self.split, self.size, self.digits, source)
        annotation: Objects | np.ndarray = objects
        if self.task == "detection":
            annotation = Objects(objects.boxes, objects.labels, area=objects.area)
        elif self.task == "semantic":
            # Visible parts do not overlap: a pixel belongs to one digit or none.
            annotation = (objects.masks * (objects.labels + 1)[:, None, None]).sum(axis=0).astype(np.uint8)
        return self.pipeline(image, annotation, int(index), drawn)


def digit_scene(split: str, size: int, digits: tuple[int, int], seed: Sequence[int]) -> tuple[np.ndarray, Objects]:
    """Composes one scene.

    Args:
        split: Whose digits and photographs to take.
        size: Side of the picture.
        digits: Fewest and most digits.
        seed: Non-negative integers, the only source of randomness.

    Returns:
        The picture, `(size, size, 3)` uint8, and the digits in it with masks of their visible parts.
    """
    rng = np.random.default_rng(seed)
    photographs = load_photographs(PHOTOGRAPHS[split])
    background = square_piece(photographs[rng.integers(len(photographs))], size, rng)
    return compose(background, _cutouts(split, size, digits, rng), rng)


def _cutouts(split: str, size: int, digits: tuple[int, int], rng: np.random.Generator) -> Iterator[Cutout]:
    images, classes = load_split(split)
    for _ in range(rng.integers(digits[0], digits[1] + 1)):
        number = rng.integers(len(images))
        side = round(size * rng.uniform(0.18, 0.5))
        ink = cv2.resize(images[number], (side, side), interpolation=cv2.INTER_CUBIC).clip(0, 1)
        alpha = np.clip(ink * 2 - 0.25, 0, 1)
        yield Cutout(int(classes[number]), alpha, ink > 0.5, lambda part, around: _colour(rng, around.mean()))


def _colour(rng: np.random.Generator, around: float) -> np.ndarray:
    """A random colour that stands out: light on dark places, dark on light ones."""
    colour = rng.uniform(0, 90, 3) if around > 127 else rng.uniform(165, 255, 3)
    colour[rng.integers(3)] = rng.uniform(0, 255)
    return colour.astype(np.float32)


@cache
def load_split(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Digits of a split as `(N, 8, 8)` float32 of 0..1, and their classes; every fifth is for testing."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    chosen = (np.arange(len(bunch.target)) % 5 == 4) == (split == "test")
    return (bunch.images[chosen] / 16).astype(np.float32), bunch.target[chosen]
