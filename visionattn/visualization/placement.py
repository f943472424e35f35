"""Places the labels of boxes without overlap."""

from collections.abc import Sequence

import numpy as np

__all__ = ["place_labels"]


def place_labels(
    boxes: np.ndarray, sizes: Sequence[tuple[int, int]], canvas: tuple[int, int]
) -> list[tuple[int, int] | None]:
    """Places labels beside, in or near their boxes, without overlap.

    Each label takes the free place that hides least of other boxes: over, under or beside its box, in its corners, or
    else nearby. The first label is placed first.

    Args:
        boxes: `(N, 4)`, left, top, right, bottom in pixels.
        sizes: Width and height of each label, of the first M boxes.
        canvas: Width and height of the picture.

    Returns:
        Left and top of each label, M of them; none where no place is free.
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    taken = np.zeros((0, 4))
    places: list[tuple[int, int] | None] = []
    for number, (box, size) in enumerate(zip(boxes, sizes, strict=False)):
        others = np.delete(boxes, number, axis=0)
        spot = None
        for candidates in (_beside(box, size), _around(box, size)):
            rectangles = _clamped(candidates, size, canvas)
            free = rectangles[_overlap(rectangles, taken).sum(1) == 0]
            if len(free):
                # Earlier candidates look better: each place further down the list costs a little.
                cost = _overlap(free, others).sum(1) / (size[0] * size[1]) + 0.05 * np.arange(len(free))
                spot = free[cost.argmin()]
                break
        if spot is None:
            places.append(None)
        else:
            taken = np.vstack([taken, spot])
            places.append((int(spot[0]), int(spot[1])))
    return places


def _beside(box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Over and under the box, in its corners and on its sides."""
    (left, top, right, bottom), (width, height) = box, size
    return np.array(
        [
            *((x, top - height) for x in (left, right - width)),
            *((x, bottom) for x in (left, right - width)),
            *((x, y) for y in (top, bottom - height) for x in (left, right - width)),
            *((x, y) for y in (top, bottom - height) for x in (right, left - width)),
            ((left + right - width) / 2, (top + bottom - height) / 2),
        ]
    )


def _around(box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A grid of places round the middle of the box, the nearest first."""
    middle = (box[:2] + box[2:] - size) / 2
    rows, columns = np.mgrid[-8:9, -4:5]
    offsets = np.stack([columns.ravel() * size[0] / 2, rows.ravel() * size[1]], axis=1)
    return middle + offsets[np.argsort(np.abs(offsets).sum(1), kind="stable")]


def _clamped(corners: np.ndarray, size: tuple[int, int], canvas: tuple[int, int]) -> np.ndarray:
    """Rectangles of a size at these corners, moved into the picture."""
    room = np.maximum(np.subtract(canvas, size), 0)
    corners = np.clip(np.round(corners), 0, room)
    return np.hstack([corners, corners + size])


def _overlap(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Areas that rectangles have in common, `(N, M)`."""
    top_left = np.maximum(first[:, None, :2], second[None, :, :2])
    bottom_right = np.minimum(first[:, None, 2:], second[None, :, 2:])
    return np.clip(bottom_right - top_left, 0, None).prod(-1)
