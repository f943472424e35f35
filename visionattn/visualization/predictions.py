"""Draws annotations and predictions: classes, boxes, masks and overlays, with a legend.

Pictures whose longer side is below 480 pixels are enlarged to it, those above 8192 are reduced. A legend stands
beneath, or as an inset on the picture: then the size depends on the picture's alone, as the frames of a video need.
"""

from collections import Counter
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw

from .colours import Colour, contrast, palette
from .legend import Bar, Swatch, draw_bars, draw_legend, inset_panel, stack_panel
from .placement import place_labels
from .text import typeset

__all__ = ["draw_classification", "draw_detections", "draw_grid", "draw_segmentation"]

_LEAST, _MOST = 480, 8192  # smaller pictures are enlarged, or no text would fit; larger ones cost too much memory
_NO_CLASS = 65_535  # in a mask
_COVERED = 0.35  # of a picture by labels, at most


def draw_classification(
    image: np.ndarray,
    labels: str | Sequence[str],
    scores: Sequence[float] | None = None,
    *,
    numbers: Sequence[int] | None = None,
    inset: bool = False,
) -> np.ndarray:
    """Draws a picture with the names of its classes.

    Args:
        image: `(H, W, 3)` uint8.
        labels: Names, best first.
        scores: Their probabilities, drawn as bars; none for annotations.
        numbers: Their class numbers, for names that no font can write.
        inset: Whether to write onto the picture instead of beneath it.
    """
    labels = [labels] if isinstance(labels, str) else list(labels)
    known = [None] * len(labels) if numbers is None else list(numbers)
    canvas, _ = _scaled(image)
    size, _ = _sizes(canvas)
    if scores is None:
        entries = [Swatch(text, None, number) for text, number in zip(labels, known, strict=True)]
        panel = draw_legend(entries, canvas.shape[1], size)
    else:
        bars = [Bar(*row) for row in zip(labels, map(float, scores), known, strict=True)]
        panel = draw_bars(bars, canvas.shape[1], size)
    return inset_panel(canvas, panel) if inset else stack_panel(canvas, panel)


def draw_detections(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray | None,
    masks: np.ndarray | None,
    classes: Sequence[str],
    *,
    inset: bool = False,
) -> np.ndarray:
    """Draws boxes with their classes, and masks as coloured shades.

    Labels are placed so that they do not hide each other; the best scores come first. Where no place is left, or labels
    would hide the picture, the legend still tells the class by its colour.

    Args:
        image: `(H, W, 3)` uint8.
        boxes: `(N, 4)`, left, top, right, bottom in pixels of the picture.
        labels: `(N,)` class numbers.
        scores: `(N,)`; none for annotations.
        masks: `(N, H, W)` bool; none for boxes alone.
        classes: Names of the classes.
        inset: Whether to leave out the legend beneath.
    """
    numbers = [int(label) for label in labels]
    colours = palette(len(classes))
    canvas, scale = _scaled(image)
    canvas = canvas.copy()
    size, line = _sizes(canvas)
    if masks is not None:
        for mask, number in zip(masks, numbers, strict=True):
            _shade(canvas, np.asarray(mask, bool), colours[number], line)
    edges = np.nan_to_num(np.asarray(boxes, np.float64).reshape(-1, 4), posinf=1e9, neginf=-1e9) * scale
    edges = np.clip(edges, 0, [canvas.shape[1] - 1, canvas.shape[0] - 1] * 2)
    edges = np.hstack([np.minimum(edges[:, :2], edges[:, 2:]), np.maximum(edges[:, :2], edges[:, 2:])])
    picture = Image.fromarray(canvas)
    pen = ImageDraw.Draw(picture)
    order = np.argsort(-(edges[:, 2:] - edges[:, :2]).prod(1), kind="stable")  # small ones on top
    for index in order:
        _outline(pen, edges[index], colours[numbers[index]], line)
    ranking = np.arange(len(numbers)) if scores is None else np.argsort(-np.asarray(scores), kind="stable")
    texts = [_label(classes, numbers[i], None if scores is None else float(scores[i])) for i in ranking]
    _write_labels(pen, edges[ranking], texts, [colours[numbers[i]] for i in ranking], size, picture.size)
    if inset or not numbers:
        return np.asarray(picture)
    counted = sorted(Counter(numbers).items())
    entries = [Swatch(_counted(classes[n], count), colours[n], n) for n, count in counted]
    return stack_panel(np.asarray(picture), draw_legend(entries, picture.width, size))


def draw_segmentation(
    image: np.ndarray,
    mask: np.ndarray,
    classes: Sequence[str],
    colours: Sequence[Colour] | None = None,
    *,
    inset: bool = False,
) -> np.ndarray:
    """Draws a mask of class numbers as coloured shades.

    Args:
        image: `(H, W, 3)` uint8.
        mask: `(H, W)` class numbers; what is none of a class stays as it is.
        classes: Names of the classes; a first one called `background` stays as it is, too.
        colours: Their colours; chosen without it.
        inset: Whether the legend, the classes and their shares of the pixels, goes onto the picture instead of beneath.
    """
    mask = np.asarray(mask)
    plain = int(classes[0] == "background")
    colours = class_colours(classes) if colours is None else colours
    canvas, _ = _scaled(image)
    size, line = _sizes(canvas)
    known = (mask >= 0) & (mask < len(classes))
    mask = np.where(known, mask, _NO_CLASS).astype(np.uint16)
    mask = cv2.resize(mask, canvas.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    known = mask != _NO_CLASS
    paint = np.array(colours, np.uint8)[np.where(known, mask, 0)]
    # The borders between classes are drawn more densely.
    border = cv2.erode(mask, np.ones((line + 1, line + 1))) != mask
    shaded = canvas.copy()
    for area, weight in ((known & (mask >= plain), 0.5), (known & (mask >= plain) & border, 0.85)):
        shaded[area] = cv2.addWeighted(canvas, 1 - weight, paint, weight, 0)[area]
    shares = np.bincount(mask[known], minlength=len(classes)) / mask.size
    present = sorted(np.flatnonzero(shares).tolist(), key=lambda n: -shares[n])
    entries = [Swatch(f"{classes[n]} {100 * shares[n]:.1f} %", colours[n], n) for n in present]
    panel = draw_legend(entries, canvas.shape[1], size)
    return inset_panel(shaded, panel) if inset else stack_panel(shaded, panel)


def class_colours(classes: Sequence[str]) -> list[Colour]:
    """Colours of the classes of pixels; a first one called `background` is black."""
    plain = int(classes[0] == "background")
    return [(0, 0, 0)] * plain + palette(len(classes) - plain)


def draw_grid(pictures: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Puts pictures of any sizes side by side in rows, on white."""
    columns = min(columns, len(pictures))
    height = max(picture.shape[0] for picture in pictures)
    width = max(picture.shape[1] for picture in pictures)
    rows = -(-len(pictures) // columns)
    grid = np.full((rows * (height + 8) - 8, columns * (width + 8) - 8, 3), 255, np.uint8)
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        top, left = row * (height + 8), column * (width + 8)
        grid[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return grid


def _scaled(image: np.ndarray) -> tuple[np.ndarray, float]:
    """A picture with its longer side within the limits, and the factor."""
    longest = max(image.shape[:2])
    scale = min(max(_LEAST / longest, 1.0), _MOST / longest)
    if scale == 1:
        return image, 1.0
    size = tuple(max(round(side * scale), 1) for side in image.shape[1::-1])
    how = cv2.INTER_NEAREST if scale >= 4 else cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cv2.resize(image, size, interpolation=how), scale


def _sizes(image: np.ndarray) -> tuple[int, int]:
    """Height of letters and width of lines that suit a picture, in pixels."""
    longest = max(image.shape[:2])
    return min(max(round(10 + longest / 150), 12), 40), min(max(round(1 + longest / 500), 2), 8)


def _shade(canvas: np.ndarray, mask: np.ndarray, colour: Colour, line: int) -> None:
    """Colours the pixels of a mask, their border more densely, in place."""
    size = canvas.shape[1::-1]
    mask = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    left, top, width, height = cv2.boundingRect(mask)
    if not width:
        return
    region = (slice(top, top + height), slice(left, left + width))
    inside = mask[region].astype(bool)
    inner = cv2.erode(mask[region], np.ones((line + 1, line + 1)), borderType=cv2.BORDER_CONSTANT, borderValue=0)
    weight = np.where(inner, 0.45, 0.85)[..., None] * inside[..., None]
    canvas[region] = canvas[region] * (1 - weight) + np.array(colour) * weight


def _outline(pen: ImageDraw.ImageDraw, box: np.ndarray, colour: Colour, line: int) -> None:
    """A rectangle of a colour, with a thin line in its contrast round it."""
    left, top, right, bottom = (round(side) for side in box.tolist())
    pen.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=contrast(colour))
    pen.rectangle((left, top, right, bottom), outline=colour, width=line)


def _label(classes: Sequence[str], number: int, score: float | None) -> tuple[str, int]:
    return (classes[number] if score is None else f"{classes[number]} {score:.2f}"), number


def _counted(name: str, count: int) -> str:
    return name if count == 1 else f"{name} ({count})"


def _write_labels(
    pen: ImageDraw.ImageDraw,
    boxes: np.ndarray,
    texts: Sequence[tuple[str, int]],
    colours: Sequence[Colour],
    size: int,
    canvas: tuple[int, int],
) -> None:
    words = [typeset(text, size, number) for text, number in texts]
    sizes = [(round(font.getlength(text)) + 6, size + 6) for text, font in words]
    most = np.searchsorted(np.cumsum([width * height for width, height in sizes]), _COVERED * canvas[0] * canvas[1])
    places = place_labels(boxes, sizes[:most], canvas)
    for (text, font), box, (width, height), colour, place in zip(words, boxes, sizes, colours, places, strict=False):
        if place is None:
            continue
        left, top = place
        middle = (left + width / 2, top + height / 2)
        nearest = tuple(np.clip(middle, box[:2], box[2:]))
        if abs(nearest[0] - middle[0]) > width / 2 + 1 or abs(nearest[1] - middle[1]) > height / 2 + 1:
            pen.line((*middle, *nearest), fill=colour, width=2)  # it stands away from its box
        edge = (left, top, left + width - 1, top + height - 1)
        pen.rectangle(edge, fill=colour, outline=contrast(colour))
        pen.text((left + 3, middle[1]), text, fill=contrast(colour), font=font, anchor="lm")
