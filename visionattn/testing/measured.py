"""What was measured of a mechanism, out of docs/results: rows of its page in the documentation site."""

import csv
import json
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from visionattn.catalog import Card

__all__ = ["losses", "speed"]

RESULTS = Path(__file__).parents[2] / "docs" / "results"
_MODES = {"fwd": "inference", "f+b": "training"}
# Where a ratio counts as slower; the rest is the noise of the machine.
_SLOWER = 0.95


def speed(card: Card, networks: Sequence[str]) -> list[str]:
    """The section on speed and memory of a mechanism; none if nothing was measured.

    Args:
        card: The mechanism.
        networks: Names of its networks.
    """
    parts = [part for part in (_contenders(card, networks), _growth(card), _kept(card)) if part]
    return ["## Speed and memory", "", *(line for part in parts for line in (*part, ""))] if parts else []


def losses(card: Card, networks: Sequence[str]) -> Iterator[str]:
    """Sentences on where a mechanism was slower, or no better, than what it was compared with.

    Args:
        card: The mechanism.
        networks: Names of its networks.
    """
    rows = [row for row in _growth_rows(card, "fwd") if "ratio" in row]
    if slower := [row for row in rows if row["ratio"]["p50"] < _SLOWER]:
        most = max(slower, key=lambda row: row["tokens"])
        yield (
            f"Slower than softmax attention of the same width, up to {most['tokens']:,} positions "
            f"({most['ratio']['p50']:.2g} times as fast there; [growth](../../results/growth.md))."
        )
    for (what, mode), found in _slower_rows(card, networks).items():
        worst = min(found, key=lambda row: _ratio(row))
        yield (
            f"In {_MODES[mode]} {_ratio(worst):.2f} times as fast as {what} at {_sides(worst)} "
            f"([speed](../../results/cpu.md))."
        )
    for page, row in _comparisons(networks):
        points, times = 100 * float(row["difference"]), float(row["training_time"])
        verdict = {
            "noise": "not significant",
            "one seed": "one seed, which decides nothing",
            "worse": "significantly worse",
            "better": "significantly better",
        }
        yield (
            f"`{row['network']}` scored {points:+.1f} points from `{row['baseline']}` "
            f"({verdict[row['verdict']]}), and a training step took {times:.2f} times as long "
            f"([comparison](../../results/{page}.md))."
        )
    for ours, value, null, other in _lost_claims(card):
        yield f"Of {ours}: {value} %, {null}: {other} %; lost with each seed ([claims](../../results/claims.md))."


def _contenders(card: Card, networks: Sequence[str]) -> list[str]:
    """Rows of the recorded speed of a mechanism and of its networks."""
    own = _own_rows(card, networks)
    if not own:
        return []
    lines = ["| | input | layout | | ours, ms | times as fast | as the |", "|---|---|---|---|---|---|---|"]
    for row in own:
        ratio = row["contenders"][row["reference"]]["ratio"]
        ours = 1e3 * row["contenders"]["ours"]["seconds"]["p50"]
        lines.append(
            f"| {row['name']} | {_sides(row)} | {row['layout']} | {_MODES[row['mode']]} | {ours:.3g} | "
            f"{ratio['p50']:.2f} ({ratio['p10']:.2f}-{ratio['p90']:.2f}) | {row['reference']} |"
        )
    return [*lines, "", f"Measured on {_where(_record('cpu'))}; [every row, and how](../../results/cpu.md)."]


def _growth(card: Card) -> list[str]:
    """Time and memory of a mixer over the number of positions."""
    rows = _growth_rows(card, "fwd")
    if not rows:
        return []
    training = {row["tokens"]: row for row in _growth_rows(card, "f+b")}
    lines = [
        "| positions | inference, ms | times as fast as softmax attention | memory, MB | training, ms | memory, MB |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        both = training.get(row["tokens"], {})
        ratio = f"{row['ratio']['p50']:.2f}" if "ratio" in row else ""
        cells = [f"{row['tokens']:,}", _ms(row), ratio, _megabytes(row), _ms(both), _megabytes(both)]
        lines.append(f"| {' | '.join(cells)} |")
    said = "One block of width 64, one picture, float32; memory is the most that its tensors take at once"
    return [*lines, "", f"{said}. Measured on {_where(_record('growth'))}; [all mixers](../../results/growth.md)."]


def _kept(card: Card) -> list[str]:
    """Memory that a plug-in keeps for the backward pass in a ResNet-50."""
    with (RESULTS / "plugins-cost.csv").open(newline="", encoding="utf-8") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    plain = int(rows["none"]["saved"])
    # BAM stands in every block in one row and where its paper has it in another.
    own = {name: row for name, row in rows.items() if name.partition(",")[0] == card.name}
    if card.kind != "plugin" or not own:
        return []
    lines = ["| in a ResNet-50 | kept for the backward pass, MB | over none |", "|---|---|---|"]
    lines += [
        f"| `{name}` | {int(row['saved']) / 1e6:.1f} | {int(row['saved']) / plain:.2f} |" for name, row in own.items()
    ]
    return [*lines, "", "Of one picture of 224 x 224, counted; [all plug-ins](../../results/plugins-cost.md)."]


def _slower_rows(card: Card, networks: Sequence[str]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Rows in which a mechanism was slower, by what it was compared with and mode."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in _own_rows(card, networks):
        if _ratio(row) < _SLOWER:
            what = {"official": "the official code", "literal": "the literal formula"}.get(row["reference"])
            found.setdefault((what or row["reference"], row["mode"]), []).append(row)
    return found


def _own_rows(card: Card, networks: Sequence[str]) -> list[dict[str, Any]]:
    names = {card.name, card.name.replace("_", " ")}
    rows = [row for row in _record("cpu")["rows"] if "contenders" in row]
    return [row for row in rows if row["name"].casefold() in names or row["name"] in networks]


def _growth_rows(card: Card, mode: str) -> list[dict[str, Any]]:
    rows = _record("growth")["rows"] if card.kind == "mixer" else []
    return [row for row in rows if (row["name"], row["mode"]) == (card.name, mode) and "seconds" in row]


def _comparisons(networks: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Rows of comparisons by training: name of the page, and the row."""
    for path in sorted(RESULTS.glob("comparison*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if row["network"] in networks and row["baseline"]:
                    yield path.stem, row


def _lost_claims(card: Card) -> Iterator[tuple[str, str, str, str]]:
    """Claims that the null model won with each seed: ours, its mean, the null model, its mean."""
    for line in (RESULTS / "claims.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        own = len(cells) == 6 and card.name in (cells[0], cells[1].partition(",")[0])
        if own and cells[5] == "lost":
            yield cells[1], cells[2].partition(" ")[0], cells[3], cells[4].partition(" ")[0]


@cache
def _record(name: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return record


def _where(record: dict[str, Any]) -> str:
    return f"{record['device']['name']}, one thread, torch {re.sub(r'[+].*', '', record['versions']['torch'])}"


def _ratio(row: dict[str, Any]) -> float:
    ratio: float = row["contenders"][row["reference"]]["ratio"]["p50"]
    return ratio


def _sides(row: dict[str, Any]) -> str:
    return "x".join(map(str, row["shape"]))


def _ms(row: dict[str, Any]) -> str:
    return f"{1e3 * row['seconds']['p50']:.3g}" if "seconds" in row else ""


def _megabytes(row: dict[str, Any]) -> str:
    return f"{row['peak'] / 1e6:.3g}" if row.get("peak") is not None else ""
