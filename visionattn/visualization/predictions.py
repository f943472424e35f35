"""Pictures of what a data set holds or a network says: boxes, masks and overlays, with a legend."""

import colorsys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

__all__ = ["draw_classification", "draw_detections", "draw_grid", "draw_segmentation", "palette"]

_SIDE = 480  # smaller pictures are enlarged, or no text would fit
_TEXT = 14


def palette(count: int) -> list[tuple[int, int, int]]:
    """Colours that are easy to tell apart, `count` of them; the first ones do not depend on how many."""
    golden = (5**0.5 - 1) / 2
    shades = ((0.85, 0.95), (0.6, 1.0), (0.95, 0.7))
    hues = (((number * golden) % 1, *shades[number % 3]) for number in range(count))
    return [tuple(round(255 * part) for part in colorsys.hsv_to_rgb(*hue)) for hue in hues]


def draw_detections(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray | None,
    masks: np.ndarray | None,
    classes: Sequence[str],
) -> np.ndarray:
    """Draws boxes with their classes, and masks as coloured shades.

    Args:
        image: `(H, W, 3)` uint8.
        boxes: `(N, 4)`, left, top, right, bottom in pixels of the picture.
        labels: `(N,)` class numbers.
        scores: `(N,)`; none for annotations.
        masks: `(N, H, W)` bool; none for boxes alone.
        classes: Names of the classes.

    Returns:
        The picture, small ones enlarged, above a legend of the classes in it.
    """
    numbers = [int(label) for label in labels]
    image, scale = _enlarge(image)
    canvas = torch.from_numpy(image).permute(2, 0, 1)
    colours = palette(len(classes))
    chosen = [colours[number] for number in numbers]
    if masks is not None and len(numbers):
        size = canvas.shape[1:]
        enlarged = torch.nn.functional.interpolate(torch.as_tensor(np.asarray(masks), dtype=torch.float32)[None], size)
        canvas = draw_segmentation_masks(canvas, enlarged[0] > 0.5, alpha=0.5, colors=chosen)
    if numbers:
        texts = [classes[number] for number in numbers]
        if scores is not None:
            texts = [f"{text} {float(score):.2f}" for text, score in zip(texts, scores, strict=True)]
        canvas = draw_bounding_boxes(
            canvas,
            torch.as_tensor(np.asarray(boxes), dtype=torch.float32) * scale,
            texts,
            colors=chosen,
            width=2,
            font=_font_file(),
            font_size=_TEXT,
            label_colors=[_readable_on(colour) for colour in chosen],
            label_background_colors=chosen,
            fill_labels=True,
        )
    return _with_legend(canvas.permute(1, 2, 0).numpy(), [(classes[n], colours[n]) for n in sorted(set(numbers))])


def draw_segmentation(
    image: np.ndarray,
    mask: np.ndarray,
    classes: Sequence[str],
    colours: Sequence[tuple[int, int, int]] | None = None,
) -> np.ndarray:
    """Draws a mask of class numbers as coloured shades.

    Args:
        image: `(H, W, 3)` uint8.
        mask: `(H, W)` class numbers; what is none of a class stays as it is.
        classes: Names of the classes; a first one called `background` stays as it is, too.
        colours: Their colours, each three bytes.

    Returns:
        The picture, small ones enlarged, above a legend of the classes in it with their shares of the pixels.
    """
    mask = np.asarray(mask)
    plain = int(classes[0] == "background")
    if colours is None:
        colours = [(0, 0, 0)] * plain + palette(len(classes) - plain)
    image, _ = _enlarge(image)
    mask_image = Image.fromarray(mask.astype(np.int32))
    mask = np.asarray(mask_image.resize(image.shape[1::-1], Image.Resampling.NEAREST))
    known = (mask >= 0) & (mask < len(classes))
    paint = np.asarray(colours, np.float32)[np.where(known, mask, 0)]
    shaded = np.where((known & (mask >= plain))[..., None], 0.5 * image + 0.5 * paint, image).astype(np.uint8)
    shares = np.bincount(mask[known], minlength=len(classes)) / mask.size
    entries = [(f"{classes[n]} {100 * shares[n]:.1f} %", tuple(colours[n])) for n in np.flatnonzero(shares)]
    return _with_legend(shaded, entries)


def draw_classification(image: np.ndarray, label: str) -> np.ndarray:
    """Draws a picture above the name of its class."""
    return _with_legend(_enlarge(image)[0], [(label, None)])


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


def _enlarge(image: np.ndarray) -> tuple[np.ndarray, float]:
    scale = max(_SIDE / max(image.shape[:2]), 1.0)
    size = tuple(max(round(side * scale), 1) for side in image.shape[1::-1])
    how = Image.Resampling.NEAREST if scale >= 4 else Image.Resampling.BILINEAR
    return np.array(Image.fromarray(image).resize(size, how)), scale


def _with_legend(image: np.ndarray, entries: Sequence[tuple[str, tuple[int, int, int] | None]]) -> np.ndarray:
    """Adds lines of coloured squares and names beneath a picture, as many as are needed."""
    if not entries:
        return image
    font = ImageFont.truetype(_font_file(), _TEXT)
    line = _TEXT + 8
    places, left, top = [], 6, 5
    for text, colour in entries:
        width = (line if colour else 0) + round(font.getlength(text))
        if left > 6 and left + width > image.shape[1]:
            left, top = 6, top + line
        places.append((left, top))
        left += width + 16
    panel = Image.new("RGB", (image.shape[1], top + line), "white")
    pen = ImageDraw.Draw(panel)
    for (text, colour), (left, top) in zip(entries, places, strict=True):
        if colour:
            pen.rectangle((left, top, left + _TEXT, top + _TEXT), fill=colour, outline="black")
            left += line
        pen.text((left, top - 1), text, fill="black", font=font)
    return np.vstack([image, np.asarray(panel)])


def _readable_on(colour: tuple[int, int, int]) -> str:
    red, green, blue = colour
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 120 else "white"


@cache
def _font_file() -> str:
    import matplotlib

    return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")
