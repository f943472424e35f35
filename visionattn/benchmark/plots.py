"""Plots of speed ratios."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from visionattn.utils.files import replacing

__all__ = ["draw_growth", "draw_suite"]

_MODES = {"fwd": ("inference", "tab:blue", -0.17), "f+b": ("training", "tab:orange", 0.17)}


def draw_suite(title: str, rows: Sequence[dict[str, Any]], path: Path) -> Path:
    """Draws the ratio of each row to its reference, with the range of 80 % of the rounds and the noise level.

    Args:
        title: Heading.
        rows: Rows of a record that were measured.
        path: The picture.
    """
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(_name(row) for row in rows))
    figure = Figure(figsize=(7, 1.2 + 0.3 * len(names)), dpi=100, layout="constrained")
    axes = figure.subplots()
    for mode, (label, colour, shift) in _MODES.items():
        here = [row for row in rows if row["mode"] == mode]
        ratios = [row["contenders"][row["reference"]]["ratio"] for row in here]
        places = [names.index(_name(row)) + shift for row in here]
        middle = [ratio["p50"] for ratio in ratios]
        spread = [[r["p50"] - r["p10"] for r in ratios], [r["p90"] - r["p50"] for r in ratios]]
        axes.errorbar(middle, places, xerr=spread, fmt="o", ms=4, color=colour, label=label)
        for row, place in zip(here, places, strict=True):
            axes.plot([row["noise"]["p10"], row["noise"]["p90"]], [place, place], color="0.75", lw=6, zorder=0)
    axes.axvline(1, color="0.4", lw=1)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xscale("log", base=2)
    ticks = [t for t in (0.25, 0.5, 1, 2, 4, 8, 16, 32) if axes.get_xlim()[0] <= t <= axes.get_xlim()[1]]
    axes.set_xticks(ticks, [f"{tick:g}x" for tick in ticks], minor=False)
    axes.set_xlabel("times as fast as the reference; grey: noise")
    axes.set_title(title)
    axes.grid(axis="x", color="0.9")
    figure.legend(loc="outside right upper", fontsize="small")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")
    return path


def draw_growth(mixers: Sequence[tuple[str, dict[str, float], dict[str, float]]], path: Path) -> Path:
    """Draws the powers of N by which time and memory grow: measured as dots, up to what is stated as bars.

    Args:
        mixers: Name, stated and measured powers of each.
        path: The picture.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.2 + 0.2 * len(mixers)), dpi=100, layout="constrained")
    for axes, what in zip(figure.subplots(1, 2, sharey=True), ("time", "memory"), strict=True):
        axes.barh(range(len(mixers)), [stated[what] for _, stated, _ in mixers], color="0.88", label="stated")
        axes.plot([measured[what] for *_, measured in mixers], range(len(mixers)), "o", ms=4, label="measured")
        axes.set(xlabel=f"power of N, {what}", xlim=(0, 2.5))
        axes.set_yticks(range(len(mixers)), [name for name, *_ in mixers], fontsize="small")
        axes.grid(axis="x", color="0.8")
    axes.invert_yaxis()
    axes.legend(loc="lower right", fontsize="small")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")
    return path


def _name(row: dict[str, Any]) -> str:
    parts = (row["name"], row["layout"], f"vs {row['reference']}")
    return " ".join(part for part in parts if part)
