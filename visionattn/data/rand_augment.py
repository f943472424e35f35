"""RandAugment (arXiv 1909.13719) as timm has it, for albumentations' chains."""

import random
from typing import Any

import albumentations as A
import numpy as np
from PIL import Image
from timm.data import rand_augment_transform

__all__ = ["RandAugment"]


class RandAugment(A.ImageOnlyTransform):
    """A few random operations of random strength on a picture: the recipe of nearly all vision transformers.

    timm draws from Python's and numpy's global generators: for its call they are seeded from the chain's own generator
    and put back afterwards.

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

    def get_params(self) -> dict[str, Any]:
        """What albumentations hands to `apply`."""
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
