"""The diagnostics in pictures: a heat map of mechanisms and abilities, and a profile of each mechanism."""

import csv
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from visionattn.data.synthetic.diagnostics import Scenes
from visionattn.visualization.curves import new_figure, save_figure

from .rows import Row, first_of
from .verdicts import Verdict

__all__ = ["draw_heat_map", "draw_looks", "draw_profile", "draw_profiles", "draw_tasks"]

_COLOURS = {"better": "#0072b2", "worse": "#d55e00"}
_OTHER = "0.75"
_SMALL: Mapping[str, Any] = {"ha": "center", "va": "center", "fontsize": 7}
# Of a profile in SVG: height of a line, widths of the names, the bars and the numbers.
_LINE, _NAMES, _BARS, _NUMBERS = 18, 92, 260, 188


def draw_heat_map(rows: Sequence[Row], verdicts: Mapping[str, Mapping[str, Verdict]], path: Path) -> None:
    """Draws differences from the baseline in points; those that are told apart are in bold, unfinished ones grey.

    Colours grow with the logarithm beyond 1.5 points, so that small differences show beside large ones.

    Args:
        rows: Down, host by host.
        verdicts: Task -> row -> verdict.
        path: A `.png` file.
    """
    from matplotlib.colors import SymLogNorm

    rows, tasks = sorted(rows, key=_host_order(rows)), [*verdicts]
    values = np.array([[_points(verdicts[task].get(row.name)) for task in tasks] for row in rows])
    figure = new_figure(2.6 + 1.05 * len(tasks), 1.2 + 0.27 * len(rows), 100)
    axes = figure.subplots()
    limit = float(np.nan_to_num(np.abs(values)).max(initial=5.0))
    norm = SymLogNorm(1.5, linscale=0.5, vmin=-limit, vmax=limit)
    picture = axes.imshow(values, cmap="RdBu", norm=norm, aspect="auto")
    axes.set_xticks(range(len(tasks)), tasks, rotation=30, ha="right")
    axes.set_yticks(range(len(rows)), [row.name for row in rows], fontsize=8)
    for y, row in enumerate(rows):
        if y and row.host != rows[y - 1].host:
            axes.axhline(y - 0.5, color="black", linewidth=1.2)
        if row == first_of(row.host):
            axes.text(len(tasks) / 2 - 0.5, y, "what the rows below are compared with", **_SMALL, color="0.45")
        for x, task in enumerate(tasks):
            if (verdict := verdicts[task].get(row.name)) is not None:
                told, dark = verdict.word in _COLOURS, abs(2 * norm(values[y, x]) - 1) > 0.5
                colour = "white" if dark else "0.45" if verdict.word == "unfinished" else "0.15"
                weight = "bold" if told else "normal"
                axes.text(x, y, f"{values[y, x]:+.1f}", **_SMALL, color=colour, weight=weight)
    upper = [tick for tick in (1, 3, 10, 30) if tick <= limit]
    ticks = [*(-tick for tick in reversed(upper)), 0, *upper]
    bar = figure.colorbar(picture, label="points more than the first row of the host; bold: told apart", shrink=0.6)
    bar.set_ticks(ticks, labels=[f"{tick:+d}" if tick else "0" for tick in ticks])
    bar.minorticks_off()
    save_figure(figure, path)


def draw_profiles(rows: Sequence[Row], verdicts: Mapping[str, Mapping[str, Verdict]], path: Path) -> None:
    """Draws bars of each row's differences with their intervals; what is told apart is in colour.

    Lengths grow with the logarithm beyond 1.5 points.

    Args:
        rows: One small picture each, but for what the others are compared with.
        verdicts: Task -> row -> verdict.
        path: A `.png` file.
    """
    judged = [row for row in sorted(rows, key=_host_order(rows)) if any(row.name in own for own in verdicts.values())]
    tasks, columns = [*verdicts], 5
    lines = max(-(-len(judged) // columns), 1)
    figure = new_figure(2.5 * columns, 0.6 + 0.22 * (len(tasks) + 2) * lines, 90)
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(judged) :]:
        axes.set_axis_off()
    for axes in grid.flat[max(len(judged) - columns, 0) : len(judged)]:
        axes.tick_params(axis="x", labelbottom=True)
    for axes, row in zip(grid.flat, judged, strict=False):
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
    # As the colours of the heat map; an interval of three seeds can be wider than there are points.
    grid[0][0].set_xscale("symlog", linthresh=1.5, linscale=0.5)
    grid[0][0].set(xlim=(-100, 100), xticks=(-30, -3, 0, 3, 30), xticklabels=("-30", "-3", "0", "+3", "+30"))
    grid[0][0].minorticks_off()
    save_figure(figure, path)


def draw_profile(csv_path: str | Path, mechanism_name: str) -> str | None:
    """Bars of a mechanism's differences from the baseline of its host, with their intervals, as SVG.

    What is told apart is in colour, the rest in the colour of the text around the drawing.

    Args:
        csv_path: The table of a report, `diagnostics.csv`; `diagnostics-verdicts.csv` lies beside it.
        mechanism_name: The name on its card.

    Returns:
        The `<svg>` element; none where the report has no verdict on the mechanism, finished or not, or is not there.
    """
    path = Path(csv_path)
    path = path.with_name(f"{path.stem}-verdicts.csv")
    if not path.is_file():
        return None
    with path.open(newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["row"].partition("/")[2] == mechanism_name]
    # With one seed there is no interval.
    lines = [line for line in lines if line["half"] != "inf"]
    if not lines:
        return None
    points = [(100 * float(line["difference"]), 100 * float(line["half"])) for line in lines]
    limit = max(5.0, *(abs(value) + half for value, half in points))
    scale, middle = _BARS / 2 / limit, _NAMES + _BARS / 2
    height = _LINE * (len(lines) + 1) + 4
    shapes = []
    for at, (line, (value, half)) in enumerate(zip(lines, points, strict=True)):
        y = _LINE * at + _LINE / 2 + 2
        colour = _COLOURS.get(line["verdict"], "currentColor")
        x, bar = middle + scale * min(value, 0.0), scale * abs(value)
        faint = "" if line["verdict"] in _COLOURS else ' opacity="0.35"'
        low, high = (middle + scale * end for end in (value - half, value + half))
        text = f"{value:+.1f} ± {half:.1f}: {line['verdict']}"
        shapes += [
            f'<text x="{_NAMES - 6}" y="{y + 4:.1f}" text-anchor="end">{escape(line["task"])}</text>',
            f'<rect x="{x:.1f}" y="{y - 5:.1f}" width="{bar:.1f}" height="10" fill="{colour}"{faint}/>',
            f'<path d="M{low:.1f} {y:.1f}H{high:.1f}" stroke="currentColor"/>',
            f'<text x="{_NAMES + _BARS + 6}" y="{y + 4:.1f}">{escape(text)}</text>',
        ]
    baseline = lines[0]["baseline"]
    shapes += [
        f'<path d="M{middle:.1f} 2V{_LINE * len(lines) + 2}" stroke="currentColor"/>',
        f'<text x="{middle:.1f}" y="{height - 4}" text-anchor="middle">points more than {escape(baseline)}</text>',
    ]
    body = "\n".join(shapes)
    title = f"What {escape(mechanism_name)} brings on each task of the diagnostics, against {escape(baseline)}"
    return (
        f'<svg class="profile" xmlns="http://www.w3.org/2000/svg" role="img" width="{_NAMES + _BARS + _NUMBERS}" '
        f'viewBox="0 0 {_NAMES + _BARS + _NUMBERS} {height}" style="max-width: 100%; height: auto" fill="currentColor" '
        f'font-size="11">\n<title>{title}</title>\n{body}\n</svg>'
    )


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

    "even": the same everywhere.

    Args:
        rows: Down, as far as they have maps.
        scenes: Task -> its scenes.
        looks: By row and task the map `(H, W)`, of bytes.
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
            axes.imshow(own.images[0].mean(-1), cmap="gray")
            look = looks.get((row.name, task))
            if look is not None and np.ptp(look) > 0:
                axes.imshow(look, cmap="inferno", alpha=0.6)
            elif look is not None:
                axes.text(0.5, 0.08, "even", transform=axes.transAxes, **_SMALL, color="white")
    for row, line in zip(shown, grid[1:], strict=True):
        line[0].set_ylabel(row.mechanism, fontsize=6, rotation=0, ha="right")
    save_figure(figure, path)


def _host_order(rows: Sequence[Row]) -> Callable[[Row], int]:
    hosts = list(dict.fromkeys(row.host for row in rows))
    return lambda row: hosts.index(row.host)


def _points(verdict: Verdict | None) -> float:
    return float("nan") if verdict is None else 100 * verdict.difference
