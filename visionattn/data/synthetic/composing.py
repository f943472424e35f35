"""Composes images of cut-out objects: the generator of the synthetic digits and objects."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

from ..objects import Objects

__all__ = ["Cutout", "compose", "load_photographs", "square_piece"]

_VISIBLE = 0.5  # an object may hide at most this share of another


@dataclass(frozen=True)
class Cutout:
    """An object to place on an image.

    Args:
        label: Its class number.
        alpha: `(h, w)` float32, from 0, transparent, to 1.
        shape: `(h, w)` bool, its pixels.
        paint: Gives its colours, `(h', w', 3)` or `(3,)` float32, where the rows and columns of it that are within the
            picture are given, and what is there now.
    """

    label: int
    alpha: np.ndarray
    shape: np.ndarray
    paint: Callable[[tuple[slice, slice], np.ndarray], np.ndarray]


def compose(background: np.ndarray, cutouts: Iterable[Cutout], rng: np.random.Generator) -> tuple[np.ndarray, Objects]:
    """Places objects at random positions of an image, at most an eighth of each outside, in front of each other.

    One that would hide too much of another is left out.

    Args:
        background: `(H, W, 3)` uint8.
        cutouts: The objects, none larger than the picture.
        rng: Draws the places.

    Returns:
        The picture and the objects on it, with boxes and masks of what can be seen of them.
    """
    image = background.astype(np.float32)
    height, width = image.shape[:2]
    owner = np.zeros((height, width), np.uint8)  # whose pixel it is: 0 the background's, k the k-th object's
    labels: list[int] = []
    whole: list[int] = []  # pixels of each object when nothing stood in front of it yet
    for cutout in cutouts:
        h, w = cutout.alpha.shape
        left = int(rng.integers(-(w // 8), width - w + w // 8 + 1))
        top = int(rng.integers(-(h // 8), height - h + h // 8 + 1))
        x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + w, width), min(top + h, height)
        place, part = np.s_[y0:y1, x0:x1], np.s_[y0 - top : y1 - top, x0 - left : x1 - left]
        covered = owner.copy()
        covered[place][cutout.shape[part]] = len(labels) + 1
        *seen, own = np.bincount(covered.ravel(), minlength=len(labels) + 2)[1:]
        if not own or any(pixels < _VISIBLE * before for pixels, before in zip(seen, whole, strict=True)):
            continue
        owner = covered
        image[place] += cutout.alpha[part][..., None] * (cutout.paint(part, image[place]) - image[place])
        labels.append(cutout.label)
        whole.append(int(own))
    masks = owner[None] == np.arange(1, len(labels) + 1, dtype=np.uint8)[:, None, None]
    boxes = [(x, y, x + w, y + h) for x, y, w, h in (cv2.boundingRect(mask.view(np.uint8)) for mask in masks)]
    return np.rint(image).clip(0, 255).astype(np.uint8), Objects(boxes, labels, masks, area=masks.sum(axis=(1, 2)))


def square_piece(photograph: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """A square crop of a photograph at a random position and scale, mirrored or not, as `(size, size, 3)`."""
    height, width = photograph.shape[:2]
    side = int(min(height, width) * rng.uniform(0.4, 1.0))
    top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
    piece = photograph[top : top + side, left : left + side]
    piece = piece[:, ::-1] if rng.random() < 0.5 else piece
    return cv2.resize(piece, (size, size), interpolation=cv2.INTER_AREA if side > size else cv2.INTER_LINEAR)


@cache
def load_photographs(names: tuple[str, ...]) -> tuple[np.ndarray, ...]:
    """Photographs as `(H, W, 3)` uint8, the longer side at most 512.

    Args:
        names: Those of scikit-learn end in .jpg, the others are functions of skimage.data.
    """
    import skimage.data
    from sklearn.datasets import load_sample_image

    def read(name: str) -> np.ndarray:
        image = load_sample_image(name) if name.endswith(".jpg") else getattr(skimage.data, name)()
        image = image[0] if isinstance(image, tuple) else image  # the left one of a stereo pair
        image = image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)
        scale = min(512 / max(image.shape[:2]), 1.0)
        return cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)

    return tuple(map(read, names))
