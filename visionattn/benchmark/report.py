"""Tables and plots of records: everything the documentation states about speed is generated here from JSON."""

from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from visionattn.utils.files import replacing
from visionattn.utils.marks import put_between

from .growth import degrees, format_growth
from .record import key, later_revisions, versions_of

__all__ = ["COMMAND", "PAGE_MARKS", "format_record", "headlines", "page_block", "update_page"]
__all__ += ["crossings", "write_report"]

Row = dict[str, Any]
Record = dict[str, Any]
COMMAND = "visionattn benchmark --from docs/results/[cg]pu*.json --page docs/results/overview.md"
PAGE_MARKS = (f"<!-- speed: made by `{COMMAND}` -->", "<!-- /speed -->")
SUITES = {
    "plugins": "Plug-ins",
    "frontends": "Front-ends",
    "mixers": "Token mixers",
    "windows": "Focused linear attention or windows",
    "networks": "Networks",
    "resnet50": "A training step of ResNet-50 with a plug-in in each block",
}
_MODES = {"fwd": "inference", "f+b": "training"}


def write_report(record: Record, path: Path) -> str:
    """Writes the tables of a record, and a plot for each suite beside it.

    Args:
        record: What was measured.
        path: Its JSON file.

    Returns:
        The text of the tables.
    """
    from .plots import draw_growth, draw_suite

    text = format_record(record)
    pictures = []
    if record["suite"] == "growth":
        pictures.append(draw_growth([found[:3] for found in degrees(record)], path.with_suffix(".png")))
    for suite in SUITES:
        rows = [row for row in record["rows"] if row["suite"] == suite and "contenders" in row]
        if rows:
            picture = path.with_name(path.stem if path.stem.startswith(suite) else f"{path.stem}-{suite}")
            pictures.append(draw_suite(SUITES[suite], headlines(rows), picture.with_suffix(".png")))
    text += "".join(f"\n![{picture.stem}]({picture.name})\n" for picture in pictures)
    with replacing(path.with_suffix(".md")) as temporary:
        temporary.write_text(text)
    return text


def format_record(record: Record) -> str:
    """The Markdown text of a record: how it was measured, and every row."""
    if record["suite"] == "growth":
        return format_growth(record)
    device = record["device"]
    gpu = device["kind"] == "cuda"
    measured = [row for row in record["rows"] if "contenders" in row]
    errors = [c["error"] for row in measured for c in row["contenders"].values() if "error" in c]
    lines = [
        f"# Speed on {device['name']}",
        "",
        "Speed relative to other implementations; below 1 ours is slower. All implementations of a row have the same",
        "weights, and their outputs and gradients were compared first"
        + (f": they differ by at most {max(errors):.1e}." if errors else "."),
        "",
        "- **official**: the formulation of the paper or of the official code, as in `visionattn/reference`;",
        "  **timm** and **fightingcv**: the layer of timm, and of the package fightingcv-attention. The first of them",
        "  in a row is its reference. **torch**: ours without our kernels.",
        "  **compiled**: ours through `torch.compile`; **official compiled**: the literal formula through it.",
        "- **SDPA**: PyTorch's fused softmax attention of the same width and heads, projections included. From how",
        "  many tokens on a mixer is the faster one is in [growth.md](growth.md), for one width.",
        "- Each round runs all implementations interleaved and gives one ratio each; a cell shows the median and the",
        "  range of 80 % of them. **noise** is the same range for ours against itself.",
        "- **inference**: a forward pass in eval mode without gradients; **training**: a forward and a backward pass",
        "  in train mode, to the input and all parameters.",
        "- **floor**: the time that the least possible traffic through memory, or the products, would take at the",
        "  speed measured here, over ours. **kept**: memory kept for the backward pass, over the reference's.",
        f"  **operators**: {'kernels launched' if gpu else 'operators of PyTorch'}, ours / the reference's.",
        "",
        f"{versions_of(record)}; {device['name']}"
        + ("" if gpu else "; one thread")
        + f"; revision {record['revision']}.",
    ]
    if _loaded(record):
        lines.append("Another process copied memory all the time, as on a machine that others use (`--loaded`).")
    lines += later_revisions(record)
    if record.get("ceilings"):
        speeds = [f"{name} {_speed(name, value)}" for name, value in record["ceilings"].items()]
        lines.append(f"Measured on this machine: {', '.join(speeds)}.")
    for suite, title in SUITES.items():
        rows = [row for row in measured if row["suite"] == suite]
        if rows:
            lines += ["", f"## {title}", "", *_table(rows)]
            if suite == "windows":
                lines += ["", *crossings(rows)]
    left_out = sorted({f"{row['name']}, {name}: {why}" for row in measured for name, why in row["notes"].items()})
    left_out += [f"{row['name']} {row['mode']}: {row['refused']}" for row in record["rows"] if "refused" in row]
    left_out += record.get("left_out", [])
    if left_out:
        lines += ["", "## Left out", "", *(f"- {line}" for line in left_out)]
    return "\n".join([*lines, "", f"Made by `{COMMAND}`.", ""])


def crossings(rows: Sequence[Row]) -> list[str]:
    """The number of tokens from which ours is faster than the reference, a line for each mode; both are linear in N."""
    lines = []
    for mode, words in _MODES.items():
        measured = [row for row in rows if row["mode"] == mode]
        if not measured:
            continue
        reference = measured[0]["reference"]
        # From the most tokens down.
        ratios = sorted(
            ((r["shape"][1] * r["shape"][2], _ahead(r)) for r in measured),
            reverse=True,
        )
        tokens = [n for n, _ in ratios]
        ahead = [n for n, _ in takewhile(lambda pair: pair[1] >= 1, ratios)]
        if not ahead:
            verdict = f"no crossing point, {reference} are still the faster at N = {tokens[0]}"
        elif ahead == tokens:
            verdict = f"no crossing point, {reference} are the slower from N = {tokens[-1]} on"
        else:
            verdict = f"crossing point at N = {ahead[-1]}, from which on {reference} are the slower"
        lines.append(f"- {words}, N = {', '.join(map(str, tokens[::-1]))}: {verdict}.")
    return lines


def headlines(rows: Sequence[Row]) -> list[Row]:
    """The rows of the first shape and dtype of each name, which are the largest maps."""
    first: dict[tuple[str, ...], tuple[Any, ...]] = {}
    for row in rows:
        first.setdefault((row["suite"], row["name"], row["reference"]), (row["shape"], row["dtype"]))
    return [r for r in rows if first[r["suite"], r["name"], r["reference"]] == (r["shape"], r["dtype"])]


def page_block(records: Sequence[Record]) -> str:
    """The short tables for a page: one for each device, median ratios of the largest maps, both layouts in one cell.

    Of a row that was measured with and without load it has the lower ratio.
    """
    parts = []
    for kind in ("cuda", "cpu"):
        found = [r for r in records if r["device"]["kind"] == kind and r["suite"] != "growth"]
        found.sort(key=_loaded)
        lowest: dict[tuple[str, ...], Row] = {}
        for row in (row for record in found for row in record["rows"] if "contenders" in row):
            lowest[key(row)] = min(lowest.get(key(row), row), row, key=_ahead)
        rows = sorted(headlines([*lowest.values()]), key=lambda row: list(SUITES).index(row["suite"]))
        if not rows:
            continue
        where = sorted({record["device"]["name"] for record in found})
        versions = sorted({f"torch {record['versions']['torch']}" for record in found})
        kept: dict[tuple[str, ...], dict[str, list[str]]] = {}
        for row in rows:
            shape = "x".join(map(str, row["shape"]))
            cell = kept.setdefault((row["name"], row["reference"], shape), {})
            cell.setdefault(row["mode"], []).append(f"{_ahead(row):.2f}")
        lines = [
            f"Speed ratio on {', '.join(where)}"
            + (", one thread" if kind == "cpu" else "")
            + f" ({', '.join(versions)}); two numbers are NCHW and NHWC"
            + (", the lower of a quiet and a loaded machine where both were measured:" if _loaded(found[-1]) else ":"),
            "",
            "| | against | input | inference | training |",
            "|---|---|---|---|---|",
        ]
        lines += [
            f"| {' | '.join(name)} | {' | '.join(', '.join(modes.get(mode, [])) for mode in _MODES)} |"
            for name, modes in kept.items()
        ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def update_page(text: str, records: Sequence[Record]) -> str:
    """The text of a page with its speed tables regenerated.

    Raises:
        ValueError: If the marks are missing.
    """
    return put_between(text, *PAGE_MARKS, page_block(records))


def _table(rows: Sequence[Row]) -> Iterator[str]:
    baselines = list(dict.fromkeys(name for row in rows for name in row["contenders"] if name != "ours"))
    extra = {
        "floor": lambda r: _percent(r["contenders"]["ours"].get("floor_share")),
        "kept": lambda r: _over(r, "kept"),
        "peak": lambda r: _over(r, "peak"),
        "operators": _operators,
    }
    extra = {name: show for name, show in extra.items() if any(show(row) for row in rows)}
    yield f"| | input | layout | dtype | | ours, ms | {' | '.join(baselines)} | noise | rounds | {' | '.join(extra)} |"
    yield "|---" * (8 + len(baselines) + len(extra)) + "|"
    for row in rows:
        cells = [row["name"], "x".join(map(str, row["shape"])), row["layout"], row["dtype"], _MODES[row["mode"]]]
        cells.append(f"{1e3 * row['contenders']['ours']['seconds']['p50']:.3g}")
        cells += [_ratio(row["contenders"][name]["ratio"]) if name in row["contenders"] else "" for name in baselines]
        cells += [f"{row['noise']['p10']:.2f}-{row['noise']['p90']:.2f}", str(row["rounds"])]
        cells += [show(row) for show in extra.values()]
        yield f"| {' | '.join(cells)} |"


def _loaded(record: Record) -> bool:
    loaded: bool = record.get("loaded", False)
    return loaded


def _ahead(row: Row) -> float:
    """How many times as fast ours is as the reference."""
    ahead: float = row["contenders"][row["reference"]]["ratio"]["p50"]
    return ahead


def _ratio(ratio: dict[str, float]) -> str:
    return f"{ratio['p50']:.2f} ({ratio['p10']:.2f}-{ratio['p90']:.2f})"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def _over(row: Row, fact: str) -> str:
    ours, theirs = (row["contenders"][name].get(fact) for name in ("ours", row["reference"]))
    return f"{ours / theirs:.2f}" if ours is not None and theirs else ""


def _operators(row: Row) -> str:
    ours, theirs = (row["contenders"][name].get("operators") for name in ("ours", row["reference"]))
    return f"{ours} / {theirs}" if ours is not None and theirs is not None else ""


def _speed(name: str, value: float) -> str:
    return f"{value / 1e12:.3g} TFLOP/s" if name.startswith("product") else f"{value / 1e9:.4g} GB/s"
