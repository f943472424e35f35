"""Synthetic scenes of several digits, one of which is asked for: by a sentence, or by a mask.

What a picture is of cannot be told without the second input: a data set for networks that take one.
"""

import zlib
from functools import cache
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.registry import DATASETS

from ..labelled import LabelledImages
from .composing import Cutout, compose, load_photographs, square_piece
from .digits import DIGITS, PHOTOGRAPHS, load_split

__all__ = ["AskedDigits", "embed"]

COLOURS = {"red": (225, 45, 45), "green": (45, 190, 60), "blue": (60, 90, 235)}
_SENTENCES = ("what is the {} digit", "read the number in {}", "which {} figure do you see", "name the one that is {}")
_LENGTHS = {"train": 4000, "test": 600}
_ASKED = ("sentence", "saliency")


@DATASETS.register_module()
class AskedDigits(LabelledImages):
    """Three digits in three colours on a dark piece of a photograph; the label is the class of the one asked for.

    `data_samples` also hold the `condition`: the embedding of a sentence that names the colour, `(32,)`, or the mask of
    the digit, `(1, size, size)`. No digit and no photograph is in both splits. A scene is a function of (seed, split,
    index). Transforms that move pixels would leave the mask behind: there is no pipeline.

    Args:
        split: `train` or `test`.
        asked: By `sentence`, or by `saliency`: then all digits of a scene have one colour.
        size: Side of the picture in pixels, at least 32.
        length: How many scenes; 4000 to train and 600 to test without it.
        seed: Gives other scenes.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self, split: str, asked: str, size: int = 40, length: int | None = None, seed: int = 0) -> None:
        if split not in _LENGTHS:
            raise ValueError(f"split must be 'train' or 'test', got {split!r}")
        if asked not in _ASKED:
            raise ValueError(f"asked must be one of {', '.join(_ASKED)}, got {asked!r}")
        length = _LENGTHS[split] if length is None else length
        if size < 32 or length < 1:
            raise ValueError(f"size must be at least 32 and length at least 1, got size={size}, length={length}")
        self.split, self.asked, self.size, self.seed = split, asked, size, seed
        self.scenes = [self._scene(index) for index in range(length)]
        super().__init__(np.array([label for _, label, _ in self.scenes]), DIGITS, (), "synthetic digits")

    def read(self, index: int) -> np.ndarray:
        return self.scenes[index][0]

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = super().__getitem__(index)
        sample["data_samples"]["condition"] = torch.from_numpy(self.scenes[int(index)][2].astype(np.float32))
        return sample

    def _scene(self, index: int) -> tuple[np.ndarray, int, np.ndarray]:
        """Picture, label and condition."""
        rng = np.random.default_rng((self.seed, 1 + [*_LENGTHS].index(self.split), index))
        photographs = load_photographs(PHOTOGRAPHS[self.split])
        while True:
            background = square_piece(photographs[rng.integers(len(photographs))], self.size, rng) // 3
            names = list(rng.permutation([*COLOURS]))
            if self.asked == "saliency":
                names = names[:1] * len(names)
            image, objects = compose(background, (_cutout(self.split, self.size, name, rng) for name in names), rng)
            # Those that would hide too much of others are left out.
            if len(objects.labels) == len(names):
                break
        asked = int(rng.integers(len(names)))
        if self.asked == "saliency":
            assert objects.masks is not None  # digits have some
            return image, int(objects.labels[asked]), objects.masks[asked][None]
        sentence = _SENTENCES[rng.integers(len(_SENTENCES))].format(names[asked])
        return image, int(objects.labels[asked]), embed(sentence)


def embed(sentence: str, width: int = 32) -> np.ndarray:
    """A stand-in for a language model: the mean of a fixed random vector of each word, of length 1. `(width,)`."""
    total = sum(_word(word, width) for word in sentence.lower().split())
    return np.asarray(total / np.linalg.norm(total) * width**0.5, np.float32)


@cache
def _word(word: str, width: int) -> np.ndarray:
    return np.random.default_rng(zlib.crc32(word.encode())).standard_normal(width)


def _cutout(split: str, size: int, colour: str, rng: np.random.Generator) -> Cutout:
    images, classes = load_split(split)
    number = rng.integers(len(images))
    side = round(size * rng.uniform(0.34, 0.42))
    ink = cv2.resize(images[number], (side, side), interpolation=cv2.INTER_CUBIC).clip(0, 1)
    paint = np.clip(np.array(COLOURS[colour]) + rng.uniform(-30, 30, 3), 0, 255).astype(np.float32)
    return Cutout(int(classes[number]), np.clip(ink * 2 - 0.25, 0, 1), ink > 0.5, lambda part, around: paint)
