"""Transforms that recipes need and albumentations lacks."""

import random
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import albumentations as A
import cv2
import numpy as np
from albumentations.core.transforms_interface import BaseTransformInitSchema
from mmengine.registry import TRANSFORMS
from PIL import Image
from pydantic import AfterValidator, Field
from timm.data import rand_augment_transform

__all__ = ["BalancedCrop", "FitResize", "RandAugment"]


def _positive(value: int | list[int]) -> int | list[int]:
    if value == [] or any(size < 1 for size in np.atleast_1d(value)):
        raise ValueError(f"must be at least 1, got {value}")
    return value


def _range(value: tuple[float, float]) -> tuple[float, float]:
    if not 0 < value[0] <= value[1]:
        raise ValueError(f"must be two positive numbers, the smaller first, got {value}")
    return value


@TRANSFORMS.register_module()
class FitResize(A.SmallestMaxSize):
    """Resizes an image to fit into a frame, keeping its aspect ratio, then by a random factor.

    The usual recipes: `short=800, long=1333` for COCO; `short=[480, ..., 800], long=1333` for several scales;
    `short=1024, long=1024, ratio=(0.1, 2.0)` and a crop for large-scale jitter; `short=512, long=2048,
    ratio=(0.5, 2.0)` and a crop for ADE20K.

    Args:
        short: Most pixels of the shorter side; of several numbers one is drawn.
        long: Most pixels of the longer side.
        ratio: Range of the factor.
    """

    class InitSchema(BaseTransformInitSchema):
        short: Annotated[int | list[int], AfterValidator(_positive)]
        long: Annotated[int, Field(ge=1)]
        ratio: Annotated[tuple[float, float], AfterValidator(_range)]

    def __init__(
        self, short: int | list[int], long: int, ratio: tuple[float, float] = (1.0, 1.0), p: float = 1.0
    ) -> None:
        super().__init__(max_size=1, interpolation=cv2.INTER_LINEAR, p=p)
        self.short = short
        self.long = long
        self.ratio = ratio

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draws the scale."""
        sides = params["shape"][:2]
        short = self.py_random.choice(self.short) if isinstance(self.short, (list, tuple)) else self.short
        return {"scale": min(short / min(sides), self.long / max(sides)) * self.py_random.uniform(*self.ratio)}


@TRANSFORMS.register_module()
class BalancedCrop(A.RandomCrop):
    """A random crop in which no class covers more than a share of the pixels, if ten attempts find one.

    A smaller picture is padded below and to the right.

    Args:
        height: Height of the crop.
        width: Width of the crop.
        max_share: Greatest share of one class among the pixels that are not ignored.
        ignored: Value of mask pixels that do not count, which padding gets too.
        fill: Colour of the padding, RGB.
    """

    class InitSchema(BaseTransformInitSchema):
        height: Annotated[int, Field(ge=1)]
        width: Annotated[int, Field(ge=1)]
        max_share: Annotated[float, Field(gt=0, le=1)]
        ignored: int
        fill: tuple[float, ...] | float

    def __init__(
        self,
        height: int,
        width: int,
        max_share: float = 0.75,
        ignored: int = 255,
        fill: tuple[float, ...] | float = (124, 116, 104),
        p: float = 1.0,
    ) -> None:
        padding = {"pad_if_needed": True, "pad_position": "top_left", "fill": fill, "fill_mask": ignored}
        super().__init__(height=height, width=width, **padding, p=p)
        self.max_share = max_share
        self.ignored = ignored

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draws the position."""
        for _ in range(10):
            drawn = super().get_params_dependent_on_data(params, data)
            left, top, right, bottom = drawn["crop_coords"]
            piece = data["mask"][top:bottom, left:right]
            counts = np.bincount(piece[piece != self.ignored])
            if counts.size and counts.max() <= self.max_share * counts.sum():
                break
        return drawn


@TRANSFORMS.register_module()
class RandAugment(A.ImageOnlyTransform):
    """A few random operations of random strength on a picture: the recipe of nearly all vision transformers.

    timm draws from Python's and numpy's global generators: for its call they are seeded from the chain's own generator
    and put back afterwards. Posterizing keeps at least one bit: at full strength timm keeps none, which is a black
    picture in old versions of Pillow and an error in new ones.

    Args:
        config: timm's description: `m` is the magnitude (0 to 10), `mstd` its deviation, `inc1` the set of operations
            that grow with it, `n` their number.
        fill: Colour of what moves into the picture, RGB.
        p: Probability of applying it.

    Raises:
        ValueError: If `config` does not start with `rand-`.
    """

    def __init__(
        self, config: str = "rand-m9-mstd0.5-inc1", fill: tuple[int, int, int] = (124, 116, 104), p: float = 1.0
    ) -> None:
        super().__init__(p=p)
        if not str(config).startswith("rand-"):
            raise ValueError(f"config must look like 'rand-m9-mstd0.5-inc1', got {config!r}")
        self.config = config
        self.fill = fill
        self.augment = rand_augment_transform(config, {"img_mean": tuple(fill)})
        for operation in self.augment.ops:
            if operation.name.startswith("Posterize"):
                operation.level_fn = partial(_at_least_one_bit, operation.level_fn)

    def get_params(self) -> dict[str, Any]:
        """The arguments that albumentations passes to `apply`."""
        return {"seed": self.py_random.getrandbits(32)}

    def apply(self, img: np.ndarray, seed: int, **params: Any) -> np.ndarray:
        """Augments `(H, W, 3)` uint8."""
        states = random.getstate(), np.random.get_state()
        random.seed(seed)
        np.random.seed(seed)
        try:
            return np.asarray(self.augment(Image.fromarray(img)))
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def _at_least_one_bit(level_fn: Callable[..., tuple[int]], *arguments: Any) -> tuple[int]:
    return (max(level_fn(*arguments)[0], 1),)
