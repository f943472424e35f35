"""How time and memory of token mixers grow with the number of tokens, beside the growth that their cards state.

Each mixer stands in one block of one width and is given square maps of growing sides. Softmax attention of the same
width and heads takes turns with it, which tells from how many tokens on a mixer is the faster one.
"""

import gc
import re
import time
from collections.abc import Iterator, Sequence
from itertools import takewhile
from math import log
from pathlib import Path
from typing import Any

import torch
from torch import nn

from visionattn.catalog import BlockContext, Card, cards, get
from visionattn.profiling.peak_memory import peak_bytes
from visionattn.testing.contracts import perturbed

from .record import later_revisions, load, own_revision, save, surroundings, versions_of
from .timing import clock_of, one_thread, quantiles, take_turns

__all__ = ["SIDES", "SLACK", "degree", "degrees", "format_growth", "growth", "measured_degree"]
__all__ += ["peak_of", "run_growth", "stated_degrees"]

SIDES = (14, 28, 56, 112)
_DIM, _HEADS = 64, 2
_THRICE = 56  # side up to which all is measured three times
# What a row may be expected to take, from the one before; more is not run.
_BYTES, _SECONDS = 3e9, 12.0
# How far above the stated degree a measured one may lie: constant parts, rounded sides, and for time the machine.
SLACK = {"memory": 0.1, "time": 0.3}
Row = dict[str, Any]
Record = dict[str, Any]


def degree(growth: str) -> float:
    """The highest power of N in a card's `cost` or `memory`: 1 for `N w`, 1.5 for `N sqrt(N)`; logarithms count 0."""
    return max(map(_power, re.split(r"[+,]|\bor\b", growth)))


def _power(term: str) -> float:
    power = sum(map(float, re.findall(r"\bN\^([\d.]+)", term))) + 0.5 * len(re.findall(r"sqrt\(N\)", term))
    return power + len(re.findall(r"\bN\b(?!\^)", re.sub(r"(sqrt\(N\))|(log N)", "", term)))


def measured_degree(tokens: Sequence[int], values: Sequence[float]) -> float:
    """The power of N that fits the last step, of the two largest numbers of tokens."""
    return log(values[-1] / values[-2]) / log(tokens[-1] / tokens[-2])


def block_of(card: Card, side: int, dim: int = _DIM, num_heads: int = _HEADS, device: str = "cpu") -> nn.Module:
    """A mixer as in a network whose map has this side, the same at each call."""
    torch.manual_seed(0)
    context = BlockContext(stage=0, block=0, dim=dim, num_heads=num_heads, grid=(side, side))
    with torch.device(device):
        return card.build_in(context)


def peak_of(card: Card, side: int, mode: str = "fwd", *, dim: int = _DIM, device: str = "cpu") -> int:
    """The most bytes that one step of a mixer holds at once besides its input and its weights.

    A first step is not counted: what is kept for a size of the map, such as indices, is made then.

    Args:
        card: Of the mixer.
        side: Height and width of the map.
        mode: `fwd`, inference, or `f+b`, training.
        dim: Width.
        device: `cpu`, or `meta` for the formulas of accelerators, without computing anything.
    """
    module = block_of(card, side, dim, device=device).train(mode == "f+b")
    x = torch.randn(1, side, side, dim, device=device)
    _step(module, x, mode)
    return peak_bytes(lambda: _step(module, x, mode))


def growth(card: Card, side: int, mode: str, seconds: float) -> Row:
    """Time, memory and the speed relative to softmax attention for one side of the map.

    Args:
        card: Of the mixer.
        side: Height and width of the map.
        mode: `fwd` or `f+b`.
        seconds: To measure, on average of both; three rounds at least, two of the largest maps.
    """
    x = torch.randn(1, side, side, _DIM, generator=torch.Generator().manual_seed(1))
    modules = [perturbed(block_of(which, side)).train(mode == "f+b") for which in (card, get("mixer", "softmax"))]
    for module in modules[: 1 if side > _THRICE else 2]:
        _step(module, x, mode)
    peak = peak_bytes(lambda: _step(modules[0], x, mode))
    steps = [lambda _, module=module: _step(module, x, mode) for module in modules]
    rounds = take_turns(steps, clock_of("cpu"), seconds=seconds, min_rounds=2 if side > _THRICE else 3)
    ratio = quantiles([softmax / ours for ours, softmax in rounds])
    return {"seconds": quantiles([ours for ours, _ in rounds]), "ratio": ratio, "rounds": len(rounds), "peak": peak}


def run_growth(
    out: Path,
    *,
    names: Sequence[str] = (),
    sides: Sequence[int] = SIDES,
    seconds: float = 0.03,
    anew: bool = False,
) -> Record:
    """Measures mixers on one thread, each row written as soon as it is there.

    Args:
        out: The JSON file. Rows that it has are not measured again.
        names: Names of mixers; all by default.
        sides: Of the maps, growing.
        seconds: To measure for each row, on average.
        anew: Whether to measure these mixers again.

    Returns:
        The record.

    Raises:
        ValueError: If a name is unknown, or the file is of another machine or other versions.
    """
    chosen = [get("mixer", name) for name in names] or [card for card in cards("mixer") if card.standalone]
    fresh: Record = surroundings("cpu") | {"suite": "growth", "rows": []}
    record = load(out) if out.exists() else fresh
    own = own_revision(record, fresh)
    if anew:
        wanted = {card.name for card in chosen}
        record["rows"] = [row for row in record["rows"] if row["name"] not in wanted]
    known = {(row["name"], row["tokens"], row["mode"]) for row in record["rows"]}
    started = time.monotonic()
    with one_thread():
        for card in chosen:
            for mode in ("fwd", "f+b"):
                for side in sides:
                    if (card.name, side * side, mode) in known:
                        continue
                    row = {"suite": "growth", "name": card.name, "tokens": side * side, "mode": mode, **own}
                    before = [r for r in record["rows"] if (r["name"], r["mode"]) == (card.name, mode)]
                    record["rows"].append(row | (_too_much(before, side) or growth(card, side, mode, seconds)))
                    save(record, out)
                    print(f"[{time.monotonic() - started:.0f} s] {_summary(record['rows'][-1])}", flush=True)
                    gc.collect()
    return record


def format_growth(record: Record) -> str:
    """The Markdown text of a record: which mixers grow as stated, then all that was measured."""
    broken = [f"`{name}` ({what})" for name, _, _, verdict in degrees(record) for what in verdict]
    names = {row["name"] for row in record["rows"]}
    missing = [f"`{card.name}`" for card in cards("mixer") if card.standalone and card.name not in names]
    tokens = sorted({row["tokens"] for row in record["rows"]})
    versions = versions_of(record)
    lines = [
        "# Growth of time and memory with the number of tokens",
        "",
        f"Token mixers in one block of width {_DIM} with {_HEADS} heads, one picture, float32, on square maps of "
        f"N = {', '.join(map(str, tokens))} tokens.",
        "",
        "- **stated**: the card's growth of time, and of memory where it is another one: attention that never holds",
        "  its weights takes time like N^2 and memory like N. w is a number of keys that does not grow with N.",
        "- **measured**: the power of N from the last two numbers of tokens. Memory is counted tensor by tensor and",
        "  exact; time is that of one thread on a machine that others use too.",
        "- **memory**: the most that tensors made in the step take at once, without the input and the weights, in",
        "  units of the input; a flat line is linear growth.",
        "- **over softmax**: how many times as fast as softmax attention (PyTorch's fused one) of the same width and",
        "  heads, which takes turns with it, and from which N on it is faster at all larger N too.",
        "",
        f"Growing faster than stated: {', '.join(broken) or 'none'}. Not measured: {', '.join(missing) or 'none'}.",
        "",
    ]
    for mode, words in (("fwd", "Inference"), ("f+b", "Training")):
        if rows := [row for row in record["rows"] if row["mode"] == mode]:
            lines += [f"## {words}", "", *_table(rows), ""]
    lines += [f"{versions}; {record['device']['name']}; one thread; revision {record['revision']}."]
    lines += [*later_revisions(record), ""]
    lines += ["Made by `visionattn benchmark --suite growth --json docs/results/growth.json`.", ""]
    return "\n".join(lines)


def degrees(record: Record) -> Iterator[tuple[str, dict[str, float], dict[str, float], list[str]]]:
    """Each mixer with its stated and measured degrees in inference, and what grows faster than stated."""
    for name, rows in _by_name([row for row in record["rows"] if row["mode"] == "fwd"]).items():
        done = [row for row in rows if "peak" in row]
        if len(done) < 2:
            continue
        stated, tokens = stated_degrees(get("mixer", name)), [row["tokens"] for row in done]
        measured = {
            "time": measured_degree(tokens, [row["seconds"]["p50"] for row in done]),
            "memory": measured_degree(tokens, [row["peak"] for row in done]),
        }
        broken = [
            f"{what}: N^{measured[what]:.2f}, stated N^{stated[what]:g}"
            for what in stated
            if measured[what] > stated[what] + SLACK[what]
        ]
        yield name, stated, measured, broken


def stated_degrees(card: Card) -> dict[str, float]:
    """The powers of N that a card states, of `time` and of `memory`."""
    return {"time": degree(card.cost), "memory": degree(card.memory or card.cost)}


def _table(rows: Sequence[Row]) -> Iterator[str]:
    tokens = sorted({row["tokens"] for row in rows})
    head = ["mixer", "stated", *(f"ms, N = {n}" for n in tokens), "measured"]
    head += ["stated memory", *(f"memory, N = {n}" for n in tokens), "measured", "over softmax", "faster from"]
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(head) + "|"
    for name, found in _by_name(rows).items():
        card = get("mixer", name)
        done = [row for row in found if "peak" in row]
        here = {row["tokens"]: row for row in done}
        counts = [row["tokens"] for row in done]
        cells = [name, card.cost, *(f"{1e3 * here[n]['seconds']['p50']:.3g}" if n in here else "-" for n in tokens)]
        cells.append(_degree_cell(counts, [row["seconds"]["p50"] for row in done]))
        cells += [card.memory or card.cost]
        cells += [f"{here[n]['peak'] / (4 * _DIM * n):.1f}" if n in here else "-" for n in tokens]
        cells.append(_degree_cell(counts, [row["peak"] for row in done]))
        cells.append(", ".join(f"{row['ratio']['p50']:.2f}" for row in done))
        ahead = [*takewhile(lambda row: row["ratio"]["p50"] >= 1, reversed(done))]
        cells.append(f"N = {ahead[-1]['tokens']}" if ahead else f"nowhere up to {counts[-1]}")
        yield f"| {' | '.join(cells)} |"
    for row in rows:
        if "not_run" in row:
            yield f"\n{row['name']} at N = {row['tokens']} was not run: {row['not_run']}."


def _degree_cell(tokens: Sequence[int], values: Sequence[float]) -> str:
    return f"N^{measured_degree(tokens, values):.2f}" if len(values) > 1 else ""


def _too_much(before: Sequence[Row], side: int) -> Row | None:
    """Why a row is not run, judged by the steps before it; none if it is."""
    done = [row for row in before if "peak" in row]
    if len(done) < len(before):
        return {"not_run": "smaller maps took too much already"}
    if not done:
        return None
    times = (side * side / done[-1]["tokens"]) ** 2
    peak, seconds = times * done[-1]["peak"], times * done[-1]["seconds"]["p50"]
    if peak > _BYTES:
        return {"not_run": f"it could hold {peak / 1e9:.0f} GB"}
    if seconds > _SECONDS:
        return {"not_run": f"a step could take {seconds:.0f} s"}
    return None


def _by_name(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows of each mixer, by their number of tokens."""
    found: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row["tokens"]):
        found.setdefault(row["name"], []).append(row)
    return dict(sorted(found.items()))


def _summary(row: Row) -> str:
    what = f"{row['name']} {row['mode']} N = {row['tokens']}"
    if "not_run" in row:
        return f"{what}: not run, {row['not_run']}"
    seconds, ratio = row["seconds"]["p50"], row["ratio"]["p50"]
    return f"{what}: {1e3 * seconds:.3g} ms, {row['peak'] / 1e6:.1f} MB, {ratio:.2f}x as fast as softmax attention"


def _step(module: nn.Module, x: torch.Tensor, mode: str) -> Any:
    if mode == "fwd":
        with torch.inference_mode():
            return module(x)
    x = x.detach().requires_grad_()
    leaves = (x, *(p for p in module.parameters() if p.requires_grad))
    return torch.autograd.grad(module(x).sum(), leaves, allow_unused=True)
