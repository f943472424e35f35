"""Draws maps as images."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch.nn import functional as F

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["as_seen", "figure", "grid", "overlay"]

_GAP = 4
_PANEL = 2.1  # inches of a panel of a figure: four fill a page of two columns


def as_seen(x: torch.Tensor, mean: Sequence[float] = (), std: Sequence[float] = ()) -> np.ndarray:
    """The pixels that a network sees as a picture. `(3, H, W) -> (H, W, 3)` uint8.

    Args:
        x: One image of a batch; of other than three channels the mean, in grey.
        mean: What was taken off each channel, for pixels in 0..1.
        std: What each channel was divided by. Without both the contrast goes from black to white.
    """
    x = x.detach().float().cpu()
    if len(mean) and len(std):
        x = x * torch.tensor(std).view(-1, 1, 1) + torch.tensor(mean).view(-1, 1, 1)
    else:
        low, high = x.amin(), x.amax()
        x = (x - low) / (high - low).clamp_min(1e-12)
    x = x if len(x) == 3 else x.mean(0).expand(3, -1, -1)
    return (x.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()


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


def figure(
    image: np.ndarray,
    maps: Mapping[str, torch.Tensor],
    *,
    title: str = "",
    label: str = "",
    colormap: str = "viridis",
    opacity: float = 0.6,
    smooth: bool = True,
    columns: int = 4,
    outline: Sequence[float] | np.ndarray | None = None,
) -> "Figure":
    """A figure for a paper: the image, maps laid over it on one scale, and their colour bar.

        explain.figure(seen, {"rollout": explain.rollout(record)[0]}, label="weight").savefig("rollout.pdf")

    Args:
        image: `(H, W, 3)` uint8 in RGB.
        maps: `(h, w)` each, by what is written above them.
        title: Of the whole.
        label: What the numbers of the colour bar are.
        colormap: Of matplotlib.
        opacity: Of the maps, from 0 to 1.
        smooth: Draw the maps bilinearly; otherwise their cells are seen.
        columns: Panels in a row.
        outline: What is explained, drawn into every panel: a box, left, top, right, bottom in pixels of the image, or
            the border of a mask `(H, W)` bool.

    Raises:
        ValueError: If there is no map, or `opacity` or a shape is out of range.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity must lie in 0..1, got {opacity}")
    values = {name: map_.detach().float().cpu().numpy() for name, map_ in maps.items()}
    if not values or image.ndim != 3 or image.shape[2] != 3 or any(map_.ndim != 2 for map_ in values.values()):
        shapes = [map_.shape for map_ in values.values()]
        raise ValueError(f"image must be (H, W, 3) and maps (h, w), at least one, got {image.shape} and {shapes}")
    height, width = image.shape[:2]
    columns = min(columns, len(values) + 1)
    rows = -(-(len(values) + 1) // columns)
    size = (columns * _PANEL + 0.7, rows * (_PANEL * height / width + 0.25) + (0.35 if title else 0.1))
    drawn = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(drawn)
    axes = drawn.subplots(rows, columns, squeeze=False).flatten()
    low, high = min(map_.min() for map_ in values.values()), max(map_.max() for map_ in values.values())
    scale = ScalarMappable(Normalize(float(low), float(high)), colormap)
    for axis in axes:
        axis.set_axis_off()
    for axis, (name, map_) in zip(axes, [("input", None), *values.items()], strict=False):
        axis.imshow(image)
        axis.set_title(name, fontsize=8)
        if map_ is not None:
            axis.imshow(
                map_,
                cmap=scale.cmap,
                norm=scale.norm,
                alpha=opacity,
                extent=(-0.5, width - 0.5, height - 0.5, -0.5),
                interpolation="bilinear" if smooth else "nearest",
            )
        if outline is not None and np.ndim(outline) == 2:
            if not np.all(outline):  # the whole image has no border
                axis.contour(np.asarray(outline, float), [0.5], colors="white", linewidths=1)
        elif outline is not None:
            left, top, right, bottom = outline
            box = Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor="white", linewidth=1)
            axis.add_patch(box)
    bar = drawn.colorbar(scale, ax=list(axes), fraction=0.05, pad=0.02, aspect=25)
    bar.ax.tick_params(labelsize=7)
    bar.set_label(label, fontsize=8)
    if title:
        drawn.suptitle(title, fontsize=9)
    return drawn
