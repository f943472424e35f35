"""Curves and tables as pictures: learning curves, precision over recall, confusion matrices."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from visionattn.utils.files import replacing

from .text import font_file, legible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties

__all__ = ["draw_confusion", "draw_learning_curve", "draw_precision_recall", "line_styles", "new_figure", "save_figure"]

# Dark enough for thin lines on white, and apart for people who are colour-blind.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc3f90", "#5b3fa0", "#8a6100", "#3fa7d6", "#333333")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.3)), (0, (7, 2, 1.5, 2)), (0, (10, 3, 1, 3, 1, 3)))
_BASELINE = "0.55"


def line_styles(count: int) -> list[dict[str, Any]]:
    """Colours, dashes and widths for lines of one picture, no two alike among the first 80."""
    colours, dashes = len(_COLOURS), len(_DASHES)
    return [
        {
            "color": _COLOURS[n % colours],
            "linestyle": _DASHES[n // colours % dashes],
            "linewidth": 1.5 + 1.2 * (n // (colours * dashes) % 2),
        }
        for n in range(count)
    ]


def draw_learning_curve(
    losses: Mapping[str, Sequence[tuple[float, float]]],
    rates: Sequence[tuple[float, float]],
    scores: Mapping[str, Sequence[tuple[float, float]]],
    path: str | Path,
    *,
    axis: str = "epoch",
    higher_is_better: bool = True,
    unit: str = "",
) -> Path:
    """Draws training losses and the learning rate beside the scores of the evaluations, the best one marked.

    Args:
        losses: Name -> `(when, value)`, in order.
        rates: The learning rate, `(when, value)`.
        scores: Metric -> `(when, value)`, in order; the best of the first metric is marked.
        path: A `.png` file.
        axis: What `when` counts.
        higher_is_better: Which value of the first metric is the best.
        unit: Of the scores, such as `%`; shown with the metric's name.

    Returns:
        The path.
    """
    figure = new_figure(11, 4.2)
    left, right = figure.subplots(1, 2)
    for (name, points), style in zip(losses.items(), line_styles(len(losses)), strict=True):
        at, values = _columns(points)
        left.plot(at, values, **{**style, "linewidth": 0.8, "alpha": 0.35})
        left.plot(at, _smoothed(values), label=_label(name), **style)
    left.set(xlabel=axis, ylabel="training loss")
    left.grid(alpha=0.3)
    if rates:
        rate = left.twinx()
        rate.plot(*_columns(rates), color=_BASELINE, linestyle=":", label="learning rate")
        rate.set_ylabel("learning rate", color=_BASELINE)
        rate.set_ylim(bottom=0)
        left.legend(handles=[*left.get_legend_handles_labels()[0], *rate.lines])
    else:
        left.legend()
    for (name, points), style in zip(scores.items(), line_styles(len(scores)), strict=True):
        right.plot(*_columns(points), marker="o", markersize=3, label=_label(name), **style)
    first = next(iter(scores), None)
    if first is not None:
        _mark_best(right, scores[first], higher_is_better)
    label = f"{_label(first or 'score')}{f' in {unit}' if unit else ''}" if len(scores) < 2 else unit
    right.set(xlabel=axis, ylabel=label, title="evaluation set")
    right.grid(alpha=0.3)
    if len(scores) > 1:
        right.legend(fontsize=8)
    return save_figure(figure, path)


def draw_confusion(matrix: np.ndarray, classes: Sequence[str], path: str | Path) -> Path:
    """Draws a confusion matrix, each row in shares of its own sum.

    Args:
        matrix: `(true, predicted)` counts.
        classes: Names of the classes.
        path: A `.png` file.

    Returns:
        The path.
    """
    matrix = np.asarray(matrix, np.float64)
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    side = min(4 + 0.35 * len(classes), 20)
    figure = new_figure(side + 1, side)
    axes = figure.subplots()
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(picture, label="share of the true class (numbers: %)", shrink=0.8)
    axes.set(xlabel="predicted", ylabel="true")
    if len(classes) <= 40:
        names, font = _class_names(classes)
        axes.set_xticks(range(len(names)), names, rotation=90, fontproperties=font)
        axes.set_yticks(range(len(names)), names, fontproperties=font)
    if len(classes) <= 20:
        for row, column in np.argwhere(shares >= 0.005).tolist():
            colour = "white" if shares[row, column] > 0.5 else "black"
            text = f"{100 * shares[row, column]:.0f}"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    return save_figure(figure, path)


def draw_precision_recall(
    curves: np.ndarray, means: Mapping[str, np.ndarray], classes: Sequence[str], path: str | Path
) -> Path:
    """Draws precision over recall, for each class and as means.

    Args:
        curves: `(classes, points)` precision at recalls from 0 to 1.
        means: Name -> `(points,)`, drawn in black.
        classes: Names of the classes; above 20 their curves are grey and without names.
        path: A `.png` file.

    Returns:
        The path.
    """
    figure = new_figure(8, 5)
    axes = figure.subplots()
    recall = np.linspace(0, 1, curves.shape[-1])
    names, font = _class_names(classes)
    styles = line_styles(len(classes))
    if few := len(classes) <= 20:
        for name, curve, style in zip(names, curves, styles, strict=True):
            axes.plot(recall, curve, label=_shown(name), **style)
    else:
        axes.plot(recall, curves.T, color=_BASELINE, linewidth=0.7, alpha=0.5)
    for (name, curve), dash in zip(means.items(), ("-", "--", ":", "-."), strict=False):
        axes.plot(recall, curve, color="black", linestyle=dash, linewidth=2.5, label=name)
    if means or (few and len(classes)):
        figure.legend(loc="outside right upper", prop=font, handlelength=3.5)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    return save_figure(figure, path)


def new_figure(width: float, height: float, dpi: int = 110) -> "Figure":
    """An empty figure of a size in inches, apart from matplotlib's global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=dpi, layout="constrained")


def save_figure(figure: "Figure", path: str | Path) -> Path:
    """Writes a figure as a `.png` file, replacing it atomically."""
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=figure.dpi, format="png")
    return Path(path)


def _mark_best(axes: "Axes", points: Sequence[tuple[float, float]], higher_is_better: bool) -> None:
    known = [point for point in points if np.isfinite(point[1])]
    if not known:
        return
    best = (max if higher_is_better else min)(known, key=lambda point: point[1])
    axes.plot(*best, marker="o", markersize=9, fillstyle="none", color="black")
    axes.annotate(
        f"best {best[1]:.4g}",
        best,
        xytext=(0, -16 if higher_is_better else 12),
        textcoords="offset points",
        ha="center",
        bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
    )
    axes.margins(x=0.08, y=0.15)


def _columns(points: Sequence[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    table = np.asarray(points, np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _smoothed(values: np.ndarray) -> np.ndarray:
    """Means over a fiftieth of the values round each."""
    width = len(values) // 50 * 2 + 1
    known = np.isfinite(values)
    total = np.convolve(np.where(known, values, 0), np.ones(width), "same")
    count = np.convolve(known, np.ones(width), "same")
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _class_names(classes: Sequence[str]) -> tuple[list[str], "FontProperties"]:
    """Names as matplotlib can draw them, in a font that has them: no mathematics between dollar signs."""
    from matplotlib.font_manager import FontProperties

    file = font_file("".join(classes))
    names = list(classes) if file else [legible(name, number) for number, name in enumerate(classes)]
    font = FontProperties(fname=file, size=8) if file else FontProperties(size=8)
    return [_label(name) for name in names], font


def _label(name: str) -> str:
    return name.replace("$", r"\$")


def _shown(label: str) -> str:
    """matplotlib leaves labels out of legends that begin with an underscore."""
    return f" {label}" if label.startswith("_") else label
