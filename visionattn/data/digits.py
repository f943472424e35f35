"""The handwritten digits that ship with scikit-learn: a real data set of 1,797 images that needs no download."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine.registry import DATASETS

from .labelled import LabelledImages

__all__ = ["Digits"]


@DATASETS.register_module()
class Digits(LabelledImages):
    """8x8 grey digits (UCI optical recognition of handwritten digits, test part), as RGB.

    The split is fixed: every fifth image (those whose number leaves remainder 4, 359 of them) is for testing, the
    other 1,438 are for training.

    Args:
        split: `train` or `test`.
        pipeline: Transforms; images come as `(8, 8, 3)` uint8.

    Raises:
        ValueError: If `split` is neither.
    """

    def __init__(self, split: str, pipeline: Sequence[dict[str, Any]]) -> None:
        if split not in ("train", "test"):
            raise ValueError(f"split must be 'train' or 'test', got {split!r}")
        from sklearn.datasets import load_digits

        bunch = load_digits()
        held_out = np.arange(len(bunch.target)) % 5 == 4
        chosen = held_out if split == "test" else ~held_out
        self.images = np.rint(bunch.images[chosen] * (255 / 16)).astype(np.uint8)
        super().__init__(bunch.target[chosen], [str(digit) for digit in range(10)], pipeline, "scikit-learn's digits")

    def read(self, index: int) -> np.ndarray:
        return np.repeat(self.images[index][..., None], 3, axis=2)
