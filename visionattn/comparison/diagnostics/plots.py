"""The diagnostics in pictures: a heat map of mechanisms and abilities, and a profile of each mechanism."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from visionattn.visualization.curves import new_figure, save_figure

from .rows import Row
from .verdicts import Verdict

__all__ = ["draw_heat_map", "draw_profiles"]

_COLOURS = {"better": "#0072b2", "worse": "#d55e00"}
_OTHER = "0.75"


def draw_heat_map(rows: Sequence[Row], verdicts: Mapping[str, Mapping[str, Verdict]], path: Path) -> None:
    """Draws differences from the baseline in points; those that are told apart are in bold, unfinished ones grey.

    Args:
        rows: Down.
        verdicts: Task -> row -> verdict.
        path: A `.png` file.
    """
    tasks = [*verdicts]
    values = np.array([[_points(verdicts[task].get(row.name)) for task in tasks] for row in rows])
    figure = new_figure(2.6 + 1.05 * len(tasks), 1.2 + 0.27 * len(rows), 100)
    axes = figure.subplots()
    limit = max(float(np.nanmax(np.abs(values), initial=1.0)), 1.0)
    picture = axes.imshow(values, cmap="PuOr_r", vmin=-limit, vmax=limit, aspect="auto")
    axes.set_xticks(range(len(tasks)), tasks, rotation=30, ha="right")
    axes.set_yticks(range(len(rows)), [row.name for row in rows], fontsize=8)
    for y, row in enumerate(rows):
        for x, task in enumerate(tasks):
            verdict = verdicts[task].get(row.name)
            if verdict is not None:
                told = verdict.word in _COLOURS
                style: dict[str, Any] = (
                    {"weight": "bold"} if told else {"color": "0.45" if verdict.word == "unfinished" else "0.15"}
                )
                dark = abs(values[y, x]) > 0.65 * limit
                style |= {"color": "white"} if dark else {}
                axes.text(x, y, f"{values[y, x]:+.1f}", ha="center", va="center", fontsize=7, **style)
    figure.colorbar(picture, label="points more than the baseline of the host")
    save_figure(figure, path)


def draw_profiles(rows: Sequence[Row], verdicts: Mapping[str, Mapping[str, Verdict]], path: Path) -> None:
    """Draws bars of each row's differences with their intervals; what is told apart is in colour.

    Args:
        rows: One small picture each.
        verdicts: Task -> row -> verdict.
        path: A `.png` file.
    """
    tasks, columns = [*verdicts], 5
    lines = -(-len(rows) // columns)
    figure = new_figure(2.5 * columns, 0.6 + 0.22 * (len(tasks) + 2) * lines, 90)
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(rows) :]:
        axes.set_axis_off()
    for axes, row in zip(grid.flat, rows, strict=False):
        for y, task in enumerate(tasks):
            verdict = verdicts[task].get(row.name)
            if verdict is not None:
                half = 100 * verdict.half if np.isfinite(verdict.half) else 0
                colour = _COLOURS.get(verdict.word, _OTHER)
                axes.barh(y, 100 * verdict.difference, xerr=half, color=colour, error_kw={"linewidth": 0.8})
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_title(row.name, fontsize=8)
        axes.set_yticks(range(len(tasks)), tasks, fontsize=7)
        axes.tick_params(axis="x", labelsize=7)
    grid[0][0].invert_yaxis()
    save_figure(figure, path)


def _points(verdict: Verdict | None) -> float:
    return float("nan") if verdict is None else 100 * verdict.difference
