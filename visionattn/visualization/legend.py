"""Panels that explain a picture: coloured squares with names, or bars of probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from .colours import Colour
from .text import shortened, typeset

__all__ = ["Bar", "Swatch", "draw_bars", "draw_legend", "inset_panel", "stack_panel"]

_NARROWEST = 320  # of panels, in pixels
_INK, _BAR = (40, 40, 40), (150, 205, 240)


@dataclass(frozen=True)
class Swatch:
    """A name, with a square of its colour if it has one.

    Args:
        text: The name.
        colour: The colour; none for a name alone.
        number: The class number, for names that no font can write.
    """

    text: str
    colour: Colour | None
    number: int | None = None


@dataclass(frozen=True)
class Bar:
    """A name with its probability.

    Args:
        text: The name.
        share: The probability.
        number: The class number, for names that no font can write.
    """

    text: str
    share: float
    number: int | None = None


def draw_legend(entries: Sequence[Swatch], width: int, size: int) -> np.ndarray:
    """Draws squares and names in as many lines as needed, on white.

    Args:
        entries: What to explain.
        width: Of the picture it is for, in pixels; the panel is at least 320 wide.
        size: Height of the letters in pixels.
    """
    width, line = max(width, _NARROWEST), size + 8
    laid, left, top = [], 6, 4
    for entry in entries:
        text, font = typeset(entry.text, size, entry.number)
        square = line if entry.colour else 0
        text = shortened(text, font, width - 12 - square)
        length = square + round(font.getlength(text))
        if left > 6 and left + length > width - 6:
            left, top = 6, top + line
        laid.append((left, top, entry.colour, text, font))
        left += length + 16
    panel = Image.new("RGB", (width, top + line), "white")
    pen = ImageDraw.Draw(panel)
    for left, top, colour, text, font in laid:
        if colour:
            pen.rectangle((left, top, left + size, top + size), fill=tuple(colour), outline="black")
            left += line
        pen.text((left, top + size / 2), text, fill=_INK, font=font, anchor="lm")
    return np.asarray(panel)


def draw_bars(bars: Sequence[Bar], width: int, size: int) -> np.ndarray:
    """A line for each name: a bar as long as its probability, the name and the number, on white.

    Args:
        bars: Best first.
        width: Of the picture it is for, in pixels; the panel is at least 320 wide.
        size: Height of the letters in pixels.
    """
    width, line = max(width, _NARROWEST), size + 10
    panel = Image.new("RGB", (width, line * len(bars) + 8), "white")
    pen = ImageDraw.Draw(panel)
    for row, bar in enumerate(bars):
        top = 4 + row * line
        pen.rectangle((4, top + 2, 4 + round((width - 9) * bar.share), top + line - 3), fill=_BAR)
        value, font = typeset(f"{100 * bar.share:.1f} %", size)
        pen.text((width - 10, top + line / 2), value, fill=_INK, font=font, anchor="rm")
        room = width - 30 - font.getlength(value)
        text, font = typeset(bar.text, size, bar.number)
        pen.text((10, top + line / 2), shortened(text, font, room), fill=_INK, font=font, anchor="lm")
    return np.asarray(panel)


def stack_panel(image: np.ndarray, panel: np.ndarray) -> np.ndarray:
    """Stacks the panel below the image, padding the narrower one with white."""
    width = max(image.shape[1], panel.shape[1])
    filled = [
        np.pad(part, ((0, 0), (0, width - part.shape[1]), (0, 0)), constant_values=255) for part in (image, panel)
    ]
    return np.vstack(filled)


def inset_panel(image: np.ndarray, panel: np.ndarray) -> np.ndarray:
    """Blends the panel over the top of the image, whose size is unchanged."""
    height, width = (min(sides) for sides in zip(image.shape[:2], panel.shape[:2], strict=True))
    image = image.copy()
    image[:height, :width] = 0.3 * image[:height, :width] + 0.7 * panel[:height, :width]
    return image
