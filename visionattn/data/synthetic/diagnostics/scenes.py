"""Composing scenes: places that do not overlap, pictures on them, marks, and what is done to a whole scene."""

from dataclasses import dataclass

import cv2
import numpy as np

__all__ = ["CORRUPTIONS", "MARK", "Scenes", "blank", "corrupt", "draw", "frame", "free_places", "stack"]

# Colour of whatever is no object but points one out.
MARK = (230, 40, 40)
CORRUPTIONS = ("noise", "blur", "occlusion")
Place = tuple[int, int, int]  # left, top, side


@dataclass(frozen=True)
class Scenes:
    """Scenes of one size with all that is known of them.

    Args:
        images: `(N, size, size, 3)` uint8.
        labels: `(N,)` int64.
        evidence: `(N, size, size)` bool: the pixels of the objects that the answer follows from.
        places: `(N, K, 3)` int16: left, top and side of each object, in the order that the task states.
    """

    images: np.ndarray
    labels: np.ndarray
    evidence: np.ndarray
    places: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


def stack(parts: list[tuple[np.ndarray, int, list[Place], list[Place]]]) -> Scenes:
    """Scenes from `(picture, label, places, places of the evidence)` each."""
    images = np.stack([part[0] for part in parts])
    evidence = np.zeros(images.shape[:3], bool)
    for mask, part in zip(evidence, parts, strict=True):
        for left, top, side in part[3]:
            mask[max(top, 0) : top + side, max(left, 0) : left + side] = True
    labels = np.array([part[1] for part in parts], np.int64)
    return Scenes(images, labels, evidence, np.array([part[2] for part in parts], np.int16))


def blank(size: int, rng: np.random.Generator) -> np.ndarray:
    """A dark noisy picture, `(size, size, 3)` uint8."""
    return np.repeat(rng.integers(0, 40, (size, size, 1), np.uint8), 3, axis=2)


def draw(image: np.ndarray, ink: np.ndarray, place: Place, colour: tuple[int, int, int] = (255, 255, 255)) -> None:
    """Puts a picture on a scene where it is brighter than what is there."""
    left, top, side = place
    part = image[top : top + side, left : left + side]
    np.maximum(part, (ink[..., None] * colour).astype(np.uint8), out=part)


def frame(image: np.ndarray, place: Place) -> None:
    """Marks the corners around an object, as far as they are within the picture."""
    left, top, side = place
    arm, end = max(side // 4, 1), side
    for x, y, w, h in (
        *((-1, -1, arm, 1), (-1, -1, 1, arm), (end - arm + 1, -1, arm, 1), (end, -1, 1, arm)),
        *((-1, end, arm, 1), (-1, end - arm + 1, 1, arm), (end - arm + 1, end, arm, 1), (end, end - arm + 1, 1, arm)),
    ):
        y0, x0 = top + y, left + x
        image[max(y0, 0) : max(y0 + h, 0), max(x0, 0) : max(x0 + w, 0)] = MARK


def free_places(count: int, size: int, side: int, rng: np.random.Generator, margin: int = 1) -> list[Place]:
    """Random places for objects of one size that do not touch each other.

    Args:
        count: How many.
        size: Side of the scene.
        side: Side of the objects.
        rng: Draws them.
        margin: Pixels that stay free at the edge of the scene, and between objects.

    Raises:
        ValueError: If so many hardly fit.
    """
    for _ in range(200):
        places: list[Place] = []
        for left, top in rng.integers(margin, size - side - margin + 1, (8 * count, 2)):
            if all(max(abs(left - x), abs(top - y)) >= side + margin for x, y, _ in places):
                places.append((int(left), int(top), side))
                if len(places) == count:
                    return places
    raise ValueError(f"{count} objects of {side} px hardly fit into a scene of {size} px: take fewer or smaller ones")


def corrupt(image: np.ndarray, how: str, severity: float, place: Place, rng: np.random.Generator) -> np.ndarray:
    """A scene with noise, blur or occlusion.

    Args:
        image: `(H, W, 3)` uint8.
        how: A name in `CORRUPTIONS`.
        severity: 1 is noise of 20 grey levels, a blur of 0.5 px, or a square of background that covers a quarter of
            the object's side.
        place: The object.
        rng: Draws the noise and where the square lies.
    """
    if how == "noise":
        return (image + rng.normal(0, 20 * severity, image.shape)).clip(0, 255).astype(np.uint8)
    if how == "blur":
        return cv2.GaussianBlur(image, (0, 0), 0.5 * severity)
    image = image.copy()
    left, top, side = place
    hole = min(max(round(side * severity / 4), 1), side)
    x, y = np.array((left, top)) + rng.integers(0, side - hole + 1, 2)
    image[y : y + hole, x : x + hole] = blank(hole, rng)
    return image
