"""Colours of classes, and contrasting text colours."""

import colorsys

__all__ = ["Colour", "contrast", "palette"]

Colour = tuple[int, int, int]


def palette(count: int) -> list[Colour]:
    """`count` distinguishable colours; the first ones do not depend on the count."""
    golden = (5**0.5 - 1) / 2
    shades = ((0.85, 0.95), (0.6, 1.0), (0.95, 0.7))
    hues = (((number * golden) % 1, *shades[number % 3]) for number in range(count))
    parts = (colorsys.hsv_to_rgb(*hue) for hue in hues)
    return [(round(255 * red), round(255 * green), round(255 * blue)) for red, green, blue in parts]


def contrast(colour: Colour) -> Colour:
    """Black or white, whichever is easier to see on a colour."""
    red, green, blue = colour
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 120 else (255, 255, 255)
