"""What a network says of one picture: a line, rows of a table, an annotated picture."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from visionattn.visualization.predictions import draw_detections, draw_segmentation

__all__ = ["Classification", "Detection", "Prediction", "Segmentation"]


@dataclass(frozen=True)
class Prediction(ABC):
    """What a network says of one picture.

    Args:
        path: The picture.
    """

    path: Path

    @abstractmethod
    def summary(self) -> str:
        """One line."""

    @abstractmethod
    def header(self) -> list[str]:
        """Names of the columns of `rows`."""

    @abstractmethod
    def rows(self) -> Iterable[list[Any]]:
        """Rows of a table."""

    @abstractmethod
    def draw(self, image: np.ndarray) -> np.ndarray:
        """The picture `(H, W, 3)` uint8, annotated."""

    def maps(self) -> dict[str, np.ndarray]:
        """Further pictures, by the ending of their names."""
        return {}

    def records(self) -> list[dict[str, Any]]:
        """What goes into a json file."""
        return []


@dataclass(frozen=True)
class Classification(Prediction):
    """The most probable classes.

    Args:
        labels: Their names, best first.
        scores: Their probabilities.
    """

    labels: tuple[str, ...]
    scores: tuple[float, ...]

    def summary(self) -> str:
        return f"{self.labels[0]} {100 * self.scores[0]:.1f} %"

    def header(self) -> list[str]:
        return [f"{what}_{k}" for k in range(1, len(self.labels) + 1) for what in ("label", "score")]

    def rows(self) -> Iterable[list[Any]]:
        pairs = zip(self.labels, self.scores, strict=True)
        yield [cell for label, score in pairs for cell in (label, f"{score:.6f}")]

    def draw(self, image: np.ndarray, width: int = 320, lines: int = 3) -> np.ndarray:
        scale = max(width / image.shape[1], 1.0)
        interpolation = cv2.INTER_NEAREST if scale >= 4 else cv2.INTER_LINEAR
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=interpolation)
        shown = list(zip(self.labels, self.scores, strict=True))[:lines]
        panel = np.full((24 * len(shown) + 8, image.shape[1], 3), 255, np.uint8)
        for row, (label, score) in enumerate(shown):
            top = 24 * row + 6
            right = 4 + round((image.shape[1] - 8) * score)
            cv2.rectangle(panel, (4, top), (right, top + 20), (135, 206, 235), cv2.FILLED)
            text = f"{label}  {100 * score:.1f} %"
            cv2.putText(panel, text, (10, top + 15), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (40, 40, 40), 1, cv2.LINE_AA)
        return np.vstack([image, panel])


@dataclass(frozen=True)
class Detection(Prediction):
    """The objects that were found.

    Args:
        boxes: `(N, 4)`, left, top, right, bottom in pixels.
        labels: `(N,)` class numbers.
        scores: `(N,)`.
        masks: `(N, H, W)` bool; none from detectors of boxes.
        classes: Names of the classes.
    """

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    masks: np.ndarray | None
    classes: Sequence[str]

    def summary(self) -> str:
        counts = Counter(self.classes[label] for label in self.labels)
        return ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "nothing"

    def header(self) -> list[str]:
        return ["label", "score", "left", "top", "right", "bottom"]

    def rows(self) -> Iterable[list[Any]]:
        for box, label, score in zip(self.boxes, self.labels, self.scores, strict=True):
            yield [self.classes[label], f"{score:.6f}", *(f"{side:.2f}" for side in box)]

    def draw(self, image: np.ndarray) -> np.ndarray:
        return draw_detections(image, self.boxes, self.labels, self.scores, self.masks, self.classes)

    def records(self) -> list[dict[str, Any]]:
        """As COCO's results, but with the picture's file name and the class's name."""
        from faster_coco_eval.core import mask as coco

        records = []
        for number, (left, top, right, bottom) in enumerate(self.boxes.tolist()):
            record = {
                "file_name": str(self.path),
                "category": self.classes[self.labels[number]],
                "bbox": [left, top, right - left, bottom - top],
                "score": float(self.scores[number]),
            }
            if self.masks is not None:
                code = coco.encode(np.asfortranarray(self.masks[number], np.uint8))
                record["segmentation"] = {"size": list(code["size"]), "counts": code["counts"].decode()}
            records.append(record)
        return records


@dataclass(frozen=True)
class Segmentation(Prediction):
    """The class of each pixel.

    Args:
        mask: `(H, W)` class numbers.
        classes: Names of the classes.
        colours: Their colours, each three bytes; chosen without it.
    """

    mask: np.ndarray
    classes: Sequence[str]
    colours: Sequence[tuple[int, int, int]] | None = None

    def _shares(self) -> list[tuple[str, float]]:
        counts = np.bincount(self.mask.ravel(), minlength=len(self.classes))
        return [(self.classes[number], counts[number] / self.mask.size) for number in np.flatnonzero(counts)]

    def summary(self) -> str:
        largest = sorted(self._shares(), key=lambda pair: -pair[1])[:4]
        return ", ".join(f"{name} {100 * share:.1f} %" for name, share in largest)

    def header(self) -> list[str]:
        return ["label", "share"]

    def rows(self) -> Iterable[list[Any]]:
        return ([name, f"{share:.6f}"] for name, share in self._shares())

    def draw(self, image: np.ndarray) -> np.ndarray:
        return draw_segmentation(image, self.mask, self.classes, self.colours)

    def maps(self) -> dict[str, np.ndarray]:
        """The class numbers themselves, as a grey picture."""
        return {"_classes": self.mask.astype(np.uint8 if len(self.classes) <= 256 else np.uint16)}
