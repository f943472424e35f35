"""Predictions for one image: as a line, a record, or an annotated image."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from visionattn.visualization.colours import Colour
from visionattn.visualization.predictions import (
    class_colours,
    draw_classification,
    draw_detections,
    draw_segmentation,
)

from .pictures import Picture

__all__ = ["Classification", "Detection", "Prediction", "Segmentation"]

_DRAWN = 3  # classes on an annotated picture


@dataclass(frozen=True)
class Prediction(ABC):
    """The prediction for one image.

    Args:
        picture: The picture.
    """

    picture: Picture

    @property
    def name(self) -> str:
        """The image's path, URL or number."""
        return self.picture.name

    @abstractmethod
    def summary(self) -> str:
        """The prediction in one line."""

    @abstractmethod
    def record(self) -> dict[str, Any]:
        """The whole prediction as JSON-compatible data."""

    @abstractmethod
    def draw(self, image: np.ndarray | None = None, inset: bool = False) -> np.ndarray:
        """The annotated image.

        Args:
            image: `(H, W, 3)` uint8 RGB; read again without it.
            inset: Whether to write onto the picture alone instead of beneath it, as for the frames of a video.

        Returns:
            `(H', W', 3)` uint8 RGB.
        """

    def maps(self) -> dict[str, Image.Image]:
        """Further images, by file name suffix."""
        return {}

    def _read(self, image: np.ndarray | None) -> np.ndarray:
        return self.picture.read() if image is None else image


@dataclass(frozen=True)
class Classification(Prediction):
    """The most probable classes.

    Args:
        labels: Their names, best first.
        scores: Their probabilities.
        numbers: Their class numbers.
    """

    labels: tuple[str, ...]
    scores: tuple[float, ...]
    numbers: tuple[int, ...] | None = None

    def summary(self) -> str:
        return f"{self.labels[0]} {100 * self.scores[0]:.1f} %"

    def record(self) -> dict[str, Any]:
        numbers = self.numbers or [None] * len(self.labels)
        found = zip(self.labels, numbers, self.scores, strict=True)
        return {"classes": [{"label": label, "class": n, "score": round(score, 6)} for label, n, score in found]}

    def draw(self, image: np.ndarray | None = None, inset: bool = False) -> np.ndarray:
        best = slice(0, _DRAWN)
        numbers = self.numbers[best] if self.numbers else None
        return draw_classification(
            self._read(image), self.labels[best], self.scores[best], numbers=numbers, inset=inset
        )


@dataclass(frozen=True)
class Detection(Prediction):
    """The objects that were found.

    Args:
        boxes: `(N, 4)`, left, top, right, bottom in pixels.
        labels: `(N,)` class numbers.
        scores: `(N,)`.
        masks: `(N, H, W)` bool; none from detectors of boxes.
        classes: Names of the classes.
        size: Height and width of the picture.
    """

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    masks: np.ndarray | None
    classes: Sequence[str]
    size: tuple[int, int]

    def summary(self) -> str:
        counts = Counter(self.classes[label] for label in self.labels)
        return ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "nothing"

    def record(self) -> dict[str, Any]:
        objects = []
        for number, (left, top, right, bottom) in enumerate(self.boxes.tolist()):
            label = int(self.labels[number])
            found: dict[str, Any] = {
                "label": self.classes[label],
                "class": label,
                "score": round(float(self.scores[number]), 6),
                "bbox": [round(side, 2) for side in (left, top, right - left, bottom - top)],
            }
            if self.masks is not None:
                found["segmentation"] = _run_lengths(self.masks[number])
            objects.append(found)
        return {"height": self.size[0], "width": self.size[1], "objects": objects}

    def draw(self, image: np.ndarray | None = None, inset: bool = False) -> np.ndarray:
        return draw_detections(
            self._read(image), self.boxes, self.labels, self.scores, self.masks, self.classes, inset=inset
        )


@dataclass(frozen=True)
class Segmentation(Prediction):
    """The class of each pixel.

    Args:
        mask: `(H, W)` class numbers.
        classes: Names of the classes.
        colours: Their colours; chosen without it.
    """

    mask: np.ndarray
    classes: Sequence[str]
    colours: Sequence[Colour] | None = None

    def summary(self) -> str:
        largest = sorted(self._shares(), key=lambda share: -share[1])[:4]
        return ", ".join(f"{self.classes[number]} {100 * share:.1f} %" for number, share in largest)

    def record(self) -> dict[str, Any]:
        shares = [{"label": self.classes[n], "class": n, "share": round(share, 6)} for n, share in self._shares()]
        return {"height": self.mask.shape[0], "width": self.mask.shape[1], "shares": shares}

    def draw(self, image: np.ndarray | None = None, inset: bool = False) -> np.ndarray:
        return draw_segmentation(self._read(image), self.mask, self.classes, self.colours, inset=inset)

    def maps(self) -> dict[str, Image.Image]:
        """The class indices of the pixels as a palette image; 16-bit grey above 256 classes."""
        if len(self.classes) > 256:
            return {"_classes": Image.fromarray(self.mask.astype(np.uint16))}
        picture = Image.fromarray(self.mask.astype(np.uint8), mode="P")
        colours = self.colours or class_colours(self.classes)
        picture.putpalette([int(part) for colour in colours for part in colour])
        return {"_classes": picture}

    def _shares(self) -> list[tuple[int, float]]:
        counts = np.bincount(self.mask.ravel(), minlength=len(self.classes))
        return [(number, counts[number] / self.mask.size) for number in np.flatnonzero(counts).tolist()]


def _run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """A mask as COCO's compressed run lengths."""
    from faster_coco_eval.core import mask as coco

    code = coco.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(code["size"]), "counts": code["counts"].decode()}
