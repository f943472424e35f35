"""The numbers of all heads as a figure: layers down, heads across."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .head_table import NUMBERS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["heads_figure"]

_CELL = 0.22  # inches


def heads_figure(
    rows: Sequence[dict[str, Any]], numbers: Sequence[str] = NUMBERS, *, title: str = "", colormap: str = "viridis"
) -> "Figure":
    """A panel for each number, a row a layer, a column a head; each panel has its own scale.

        explain.heads_figure(table.compute(), ["distance", "entropy"]).savefig("heads.pdf")

    What does not exist, such as the distance of channels, stays white.

    Args:
        rows: Of `HeadTable.compute`.
        numbers: Which of its numbers.
        title: Of the whole.
        colormap: Of matplotlib.

    Raises:
        ValueError: If there are no rows or no numbers, or one is unknown.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    unknown = [name for name in numbers if name not in NUMBERS]
    if not rows or not numbers or unknown:
        raise ValueError(
            f"rows must be of HeadTable.compute and numbers of {', '.join(NUMBERS)}, got {len(rows)} rows and "
            f"{', '.join(numbers) or 'no numbers'}"
        )
    layers = sorted({row["layer"] for row in rows})
    heads = 1 + max(row["head"] for row in rows)
    panel = (max(heads * _CELL, 0.8) + 0.9, max(len(layers) * _CELL, 0.8))
    columns = min(len(numbers), 3)
    lines = -(-len(numbers) // columns)
    drawn = Figure(figsize=(columns * panel[0], lines * (panel[1] + 0.6) + 0.3 * bool(title)), layout="constrained")
    FigureCanvasAgg(drawn)
    axes = drawn.subplots(lines, columns, squeeze=False).flatten()
    for axis in axes[len(numbers) :]:
        axis.set_axis_off()
    for axis, name in zip(axes, numbers, strict=False):
        cells = np.full((len(layers), heads), np.nan)
        for row in rows:
            if row[name] is not None:
                cells[layers.index(row["layer"]), row["head"]] = row[name]
        shown = axis.imshow(cells, cmap=colormap, aspect="auto", interpolation="nearest")
        axis.set_title(name.replace("_", " "), fontsize=8)
        axis.set_xlabel("head", fontsize=7)
        axis.set_ylabel("layer", fontsize=7)
        axis.tick_params(labelsize=6)
        step = -(-len(layers) // 12)
        axis.set_yticks(range(0, len(layers), step), [str(layer) for layer in layers[::step]])
        axis.set_xticks(range(0, heads, -(-heads // 8)))
        if np.isfinite(cells).any():
            drawn.colorbar(shown, ax=axis).ax.tick_params(labelsize=6)
    if title:
        drawn.suptitle(title, fontsize=9)
    return drawn
