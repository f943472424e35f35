"""Augmentation and resizing, written as configs and run by albumentations."""

import difflib
import os
import random
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # importing it would ask the network for its newest version
import albumentations as A

__all__ = ["Pipeline"]


class Pipeline:
    """A chain of albumentations transforms: an RGB picture in, a `(3, H, W)` uint8 tensor out.

    Args:
        transforms: One dict a transform: `type` is its name in albumentations, the rest its arguments; `OneOf` and the
            like take their `transforms` the same way.

    Raises:
        ValueError: If a transform or an argument is unknown or out of range.
    """

    def __init__(self, transforms: Sequence[dict[str, Any]]) -> None:
        self.compose = A.Compose([_build(transform) for transform in transforms])

    def __call__(self, image: np.ndarray, seed: int | None = None) -> torch.Tensor:
        """Transforms one picture.

        Args:
            image: `(H, W, 3)` uint8, RGB.
            seed: The only source of randomness for this picture; without it the chain's own generator goes on.

        Returns:
            `(3, H, W)` uint8.
        """
        if seed is not None:
            # One generator for the whole chain: albumentations' own seeding starts every transform alike, and a crop
            # would then tell whether the picture is flipped.
            self.compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        return torch.from_numpy(np.ascontiguousarray(self.compose(image=image)["image"].transpose(2, 0, 1)))


def _build(config: dict[str, Any]) -> A.BasicTransform | A.BaseCompose:
    arguments = dict(config)
    name = arguments.pop("type", None)
    known = [key for key, value in vars(A).items() if isinstance(value, type) and not key.startswith(("_", "Base"))]
    if name not in known:
        close = difflib.get_close_matches(str(name), known)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise ValueError(
            f"a transform's type must be the name of one of albumentations' transforms, got {name!r}{hint}"
        )
    if "transforms" in arguments:
        arguments["transforms"] = [_build(inner) for inner in arguments["transforms"]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # albumentations only warns of arguments it does not know
        try:
            return getattr(A, name)(**arguments)
        except (TypeError, ValueError, UserWarning) as error:
            raise ValueError(f"cannot build transform {name}({arguments}): {error}") from error
