"""The diagnostics in pictures: a heat map of mechanisms and abilities, and a profile of each mechanism."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from visionattn.data.synthetic.diagnostics import Scenes
from visionattn.visualization.curves import new_figure, save_figure

from .rows import Row
from .verdicts import Verdict

__all__ = ["draw_heat_map", "draw_looks", "draw_profiles", "draw_tasks"]

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


def draw_tasks(scenes: Mapping[str, Scenes], path: Path) -> None:
    """Draws the first scenes of each task with their answers, a task a line.

    Args:
        scenes: Task -> its scenes.
        path: A `.png` file.
    """
    columns = min(len(one) for one in scenes.values())
    figure = new_figure(1.1 * columns + 1, 1.3 * len(scenes), 90)
    grid = figure.subplots(len(scenes), columns, squeeze=False)
    for line, (task, own) in zip(grid, scenes.items(), strict=True):
        for axes, image, label in zip(line, own.images, own.labels, strict=False):
            axes.imshow(image)
            axes.set_title(str(label), fontsize=7, pad=2)
            axes.set(xticks=[], yticks=[])
        line[0].set_ylabel(task, fontsize=8)
    save_figure(figure, path)


def draw_looks(
    rows: Sequence[Row],
    scenes: Mapping[str, Scenes],
    looks: Mapping[tuple[str, str], np.ndarray],
    path: Path,
) -> None:
    """Draws where attention looks in the first scene of each task, a row a line, the scene on top.

    Args:
        rows: Down, as far as they have maps.
        scenes: Task -> its scenes.
        looks: By row and task the maps `(N, H, W)`.
        path: A `.png` file.
    """
    shown = [row for row in rows if any((row.name, task) in looks for task in scenes)]
    figure = new_figure(1.2 * len(scenes) + 1.4, 0.9 * (len(shown) + 1), 80)
    grid = figure.subplots(len(shown) + 1, len(scenes), squeeze=False)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
    for column, (task, own) in enumerate(scenes.items()):
        grid[0][column].imshow(own.images[0])
        grid[0][column].set_title(task, fontsize=8)
        for row, axes in zip(shown, grid[1:, column], strict=True):
            if (row.name, task) in looks:
                axes.imshow(own.images[0].mean(-1), cmap="gray")
                axes.imshow(looks[row.name, task][0], cmap="inferno", alpha=0.6)
    for row, line in zip(shown, grid[1:], strict=True):
        line[0].set_ylabel(row.mechanism, fontsize=6, rotation=0, ha="right")
    save_figure(figure, path)


def _points(verdict: Verdict | None) -> float:
    return float("nan") if verdict is None else 100 * verdict.difference
