"""Speed on the CPU against another implementation with the same weights.

Only ratios mean anything: both contenders run on the same thread, in turns, and each round gives one ratio. The rival
runs twice in every round; how far its two times lie apart is the noise that a ratio has to exceed.
"""

import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn

from visionattn._files import replacing
from visionattn.cost import saved_bytes

__all__ = ["MODES", "Case", "compare", "one_thread", "run", "surroundings", "write_table"]

# fwd: eval mode without gradients; f+b: train mode, with the gradients of the input and of all parameters.
MODES = ("fwd", "f+b")
TOLERANCE = 1e-4
MIN_ROUNDS = 11


@dataclass(frozen=True)
class Case:
    """Two contenders and what they are given.

    Args:
        name: What is compared.
        rival: What it is compared with, in a few words.
        shape: Shape of the input.
        layout: How the input lies in memory, for the table; empty if there is no choice.
        build: Builds ours and the rival, with the same weights.
        memory_format: Of the input.
        equal: Whether both compute the same, which is then checked first.
    """

    name: str
    rival: str
    shape: tuple[int, ...]
    build: Callable[[], tuple[nn.Module, nn.Module]]
    layout: str = ""
    memory_format: torch.memory_format = torch.contiguous_format
    equal: bool = True


def run(title: str, cases: Sequence[Case], out: Path, *, seconds: float = 1.0) -> str:
    """Times all cases and writes `out` (JSON) and a table beside it (Markdown).

    Args:
        title: Heading of the table.
        cases: What to compare.
        out: The JSON file.
        seconds: CPU time of each of the three contenders, on average, for each row.

    Returns:
        The table.

    Raises:
        ValueError: If two contenders that should be equal disagree.
    """
    record: dict[str, Any] = {"title": title, **surroundings(), "seconds": seconds, "rows": []}
    rows = list(product(cases, MODES))
    with one_thread():
        for number, (case, mode) in enumerate(rows, 1):
            row = {"name": case.name, "rival": case.rival, "shape": list(case.shape), "layout": case.layout}
            row |= {"mode": mode, **compare(case, mode, seconds)}
            record["rows"].append(row)
            where = " ".join(part for part in (case.name, _size(case.shape), case.layout, mode) if part)
            print(f"[{number}/{len(rows)}] {where}: {_ratio(row)}", flush=True)
    with replacing(out) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n")
    table = write_table(record)
    with replacing(out.with_suffix(".md")) as temporary:
        temporary.write_text(table)
    return table


def compare(case: Case, mode: str, seconds: float) -> dict[str, Any]:
    """Checks that both contenders agree, then times them: the rival's time over ours, and the rival's over its own.

    Args:
        case: The contenders.
        mode: `fwd` or `f+b`.
        seconds: CPU time of each contender, on average.

    Raises:
        ValueError: If outputs or input gradients differ by more than 1e-4 of the largest value.
    """
    torch.manual_seed(0)
    ours, rival = (module.train(mode == "f+b") for module in case.build())
    x = torch.randn(case.shape).to(memory_format=case.memory_format)
    step = {"fwd": _forward, "f+b": _forward_backward}[mode]
    with torch.no_grad():
        weight = torch.randn_like(ours(x))
    row: dict[str, Any] = {}
    if case.equal:
        pairs = zip(step(ours, x, weight)[:2], step(rival, x, weight)[:2], strict=True)
        row["error"] = max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)
        if not row["error"] <= TOLERANCE:
            raise ValueError(
                f"{case.name} and its rival ({case.rival}) differ by {row['error']:.1e} at "
                f"{_size(case.shape)} {case.layout} {mode}, more than {TOLERANCE:.0e}: nothing was timed"
            )
    if mode == "f+b":
        row["saved"] = {"ours": saved_bytes(ours, x), "rival": saved_bytes(rival, x)}
    rounds = _rounds([ours, rival, rival], lambda module: step(module, x, weight), seconds)
    times = {"ours": [r[0] for r in rounds], "rival": [r[1] for r in rounds]}
    return row | {
        "rounds": len(rounds),
        "ratio": _quantiles([rival / ours for ours, rival, _ in rounds]),
        "noise": _quantiles([again / rival for _, rival, again in rounds]),
        "seconds": {name: _quantiles(values) for name, values in times.items()},
    }


def write_table(record: dict[str, Any]) -> str:
    """The Markdown text of a record as `run` writes it: ratios only, every row that was measured."""
    cells: dict[tuple[str, ...], dict[str, str]] = {}
    for row in record["rows"]:
        key = (row["name"], row["rival"], _size(row["shape"]), row["layout"])
        cells.setdefault(key, {})[row["mode"]] = _ratio(row)
        if "saved" in row:
            cells[key]["saved"] = f"{row['saved']['ours'] / row['saved']['rival']:.2f}"
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    errors = [row["error"] for row in record["rows"] if "error" in row]
    checked = (
        f"have the same weights, and outputs and input gradients were compared first: they differ by at most "
        f"{max(errors):.1e} of the largest value"
        if errors
        else "are not equal: they are two ways to the same end"
    )
    lines = [
        f"# {record['title']}",
        "",
        f"How many times as fast as its rival each is; below 1 it is slower. Both {checked}.",
        "The rival `literal` is the formulation of the paper or of the official code, written down in `tests/naive`.",
        "Inference is a forward pass in eval mode without gradients, training a forward and a backward pass in train",
        "mode; kept is the memory that the forward pass keeps for the backward pass, over the rival's.",
        "",
        "Each round runs both in turns and gives one ratio of thread CPU times; a cell shows their median, the range",
        "of 80 % of them, the number of rounds, and as noise the same range for the rival against itself.",
        "",
        f"{versions}; {record['cpu']}; float32, one thread; revision {record['revision']}.",
        "",
        "| | rival | input | layout | inference | training | kept |",
        "|---|---|---|---|---|---|---|",
    ]
    columns = (*MODES, "saved")
    lines += [f"| {' | '.join(key)} | {' | '.join(row.get(c, '') for c in columns)} |" for key, row in cells.items()]
    return "\n".join([*lines, "", f"Made by `visionattn benchmark --seconds {record['seconds']:g}`.", ""])


def _forward(module: nn.Module, x: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
    with torch.inference_mode():
        return (module(x),)


def _forward_backward(module: nn.Module, x: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
    x = x.detach().requires_grad_()
    out = module(x)
    return out.detach(), *torch.autograd.grad(out, (x, *module.parameters()), weight)


def _rounds(modules: Sequence[nn.Module], step: Callable[[nn.Module], Any], seconds: float) -> list[list[float]]:
    """CPU times of the contenders, round by round; who begins changes with every round."""
    rounds: list[list[float]] = []
    while len(rounds) < MIN_ROUNDS or sum(map(sum, rounds)) < seconds * len(modules):
        times = [0.0] * len(modules)
        for turn in range(len(modules)):
            contender = (turn + len(rounds)) % len(modules)
            started = time.thread_time()
            step(modules[contender])
            times[contender] = time.thread_time() - started
        rounds.append(times)
    return rounds


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    deciles = statistics.quantiles(values, n=10, method="inclusive")
    return {f"p{10 * n}": float(f"{deciles[n - 1]:.5g}") for n in (1, 5, 9)}


def _ratio(row: dict[str, Any]) -> str:
    ratio, noise = row["ratio"], row["noise"]
    spread = f"{ratio['p10']:.2f}-{ratio['p90']:.2f}"
    return f"{ratio['p50']:.2f} ({spread}; {row['rounds']}; noise {noise['p10']:.2f}-{noise['p90']:.2f})"


def _size(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


@contextmanager
def one_thread() -> Iterator[None]:
    """Lets PyTorch compute on one thread inside the block."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def surroundings() -> dict[str, Any]:
    """Versions, processor and revision that a measurement was made with."""
    cpuinfo = Path("/proc/cpuinfo")
    models = [line for line in cpuinfo.read_text().splitlines() if "model name" in line] if cpuinfo.exists() else []
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        git = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip()
    except OSError:
        git = ""
    return {
        "versions": {"torch": torch.__version__, "Python": platform.python_version()},
        "cpu": models[0].partition(":")[2].strip() if models else platform.machine(),
        "revision": git or "unknown",
    }
