"""Draws maps as images."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch.nn import functional as F

__all__ = ["grid", "overlay"]

_GAP = 4


def overlay(
    image: np.ndarray, values: torch.Tensor, *, colormap: str = "viridis", opacity: float = 0.6, smooth: bool = True
) -> np.ndarray:
    """A map overlaid on its image. `-> (H, W, 3)` uint8.

    Args:
        image: `(H, W, 3)` uint8 in RGB.
        values: The map `(h, w)`, scaled from its smallest to its largest value.
        colormap: Of matplotlib; the default can be read by colour-blind eyes and in grey.
        opacity: Of the map, from 0 to 1.
        smooth: Enlarge the map bilinearly; otherwise its cells are seen.

    Raises:
        ValueError: If `opacity` or a shape is out of range.
    """
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity must lie in 0..1, got {opacity}")
    if values.ndim != 2 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image must be (H, W, 3) and values (h, w), got {image.shape} and {tuple(values.shape)}")
    from matplotlib import colormaps

    mode = "bilinear" if smooth else "nearest"
    enlarged = F.interpolate(values[None, None].float(), image.shape[:2], mode=mode)[0, 0]
    low, high = enlarged.min(), enlarged.max()
    scaled = ((enlarged - low) / (high - low).clamp_min(1e-12)).numpy()
    colours = colormaps[colormap](scaled)[..., :3] * 255
    return np.asarray(np.rint(image * (1 - opacity) + colours * opacity), np.uint8)


def grid(pictures: Sequence[np.ndarray], labels: Sequence[str], *, columns: int) -> np.ndarray:
    """A grid of images of one size with a label above each. `-> (H, W, 3)` uint8."""
    height, width = pictures[0].shape[:2]
    rows = -(-len(pictures) // columns)
    above = 16
    size = (columns * (width + _GAP) + _GAP, rows * (height + above + _GAP) + _GAP)
    canvas = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(canvas)
    for number, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        row, column = divmod(number, columns)
        left, top = _GAP + column * (width + _GAP), _GAP + row * (height + above + _GAP)
        pen.text((left, top), label, fill="black")
        canvas.paste(Image.fromarray(picture), (left, top + above))
    return np.asarray(canvas)
