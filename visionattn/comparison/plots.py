"""Plots of a comparison: accuracy over cost, and learning curves."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from visionattn.visualization.curves import line_styles, new_figure, save_figure

from .results import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_costs", "draw_learning"]

_DPI = 90


def draw_costs(results: Sequence[Result], path: Path) -> None:
    """Draws accuracy over training time and over kept memory, both as multiples of the baseline's.

    Args:
        results: The rows of the report.
        path: A `.png` file.
    """
    figure = new_figure(11, 4.6, _DPI)
    time, memory = figure.subplots(1, 2, sharey=True)
    time.set(xlabel="time of a training step, in the baseline's", ylabel="accuracy in %, mean and range of the seeds")
    memory.set(xlabel="memory kept for the backward pass, in the baseline's")
    times = [row.times["f+b"].median if row.times else 1.0 for row in results]
    memories = [row.kept / (row.baseline or row).kept for row in results]
    for axes, costs in ((time, times), (memory, memories)):
        _scatter(axes, results, costs)
    figure.draw_without_rendering()  # settles where things are
    for axes, costs in ((time, times), (memory, memories)):
        _name(axes, results, costs)
    save_figure(figure, path)


def draw_learning(results: Sequence[Result], path: Path) -> None:
    """Draws the training losses, and how far each is from the baseline's at the same step and seed.

    Args:
        results: The rows of the report.
        path: A `.png` file.
    """
    figure = new_figure(11, 4.6, _DPI)
    left, right = figure.subplots(1, 2)
    for row, style in zip(results, line_styles(len(results)), strict=True):
        steps, losses = _curve(row)
        left.plot(steps, losses.mean(0), label=_label(row), **style)
        if row.baseline is not None:
            right.plot(steps, (losses - _curve(row.baseline)[1]).mean(0), **style)
    left.set(xlabel="training step", ylabel="training loss, mean of the seeds")
    right.axhline(0, color="black", linewidth=1)
    right.set(xlabel="training step", ylabel="training loss minus the baseline's")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.legend(loc="outside right center", fontsize=8, handlelength=3.5)
    save_figure(figure, path)


def _scatter(axes: "Axes", results: Sequence[Result], costs: Sequence[float]) -> None:
    for row, cost, style in zip(results, costs, line_styles(len(results)), strict=True):
        scores = 100 * np.array(row.accuracies)
        mean = scores.mean()
        spread = [[mean - scores.min()], [scores.max() - mean]]
        marker = "s" if row.baseline is None else "o"
        axes.errorbar(cost, mean, spread, color=style["color"], marker=marker, markersize=5, linewidth=1)
    axes.margins(x=0.15)
    axes.grid(alpha=0.3)


def _name(axes: "Axes", results: Sequence[Result], costs: Sequence[float]) -> None:
    """Writes the names beside the points, from the lowest up, each moved up until it is clear of those before."""
    taken: list[tuple[float, float]] = []
    points = [(100 * float(np.mean(row.accuracies)), cost, row) for row, cost in zip(results, costs, strict=True)]
    for mean, cost, row in sorted(points, key=lambda point: point[:2]):
        x, y = axes.transData.transform((cost, mean))
        lift = 3.0
        while any(abs(x - other_x) < 60 and abs(y + lift - other_y) < 9 for other_x, other_y in taken):
            lift += 1
        taken.append((x, y + lift))
        # Pixels to points.
        axes.annotate(_label(row), (cost, mean), xytext=(5, 72 / _DPI * lift), textcoords="offset points", fontsize=7)


def _curve(row: Result) -> tuple[list[int], np.ndarray]:
    """Steps `(T,)` and losses `(seeds, T)`, where all seeds have logged."""
    steps = sorted(set.intersection(*({step for step, _ in curve} for curve in row.losses)))
    return steps, np.array([[dict(curve)[step] for step in steps] for curve in row.losses])


def _label(row: Result) -> str:
    """The network's name, of its attention alone where its host is the baseline."""
    host = f"{row.baseline.network}_" if row.baseline else "va_"
    return row.network.removeprefix(host).removeprefix("va_")
