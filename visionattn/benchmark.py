"""Speed of the plug-ins on the CPU, against their papers' formulas written down literally.

Only ratios mean anything: both contenders run on the same thread, in turns, and each round gives one ratio. The literal
one runs twice in every round; how far its two times lie apart is the noise that a ratio has to exceed.
"""

import importlib
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from visionattn._files import replacing
from visionattn.plugins import PLUGINS, resolve_plugin

__all__ = ["compare", "run", "write_table"]

LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
# fwd: eval mode without gradients; f+b: train mode, with the gradients of the input and of all parameters.
MODES = ("fwd", "f+b")
TOLERANCE = 1e-4
MIN_ROUNDS = 11


def run(
    names: Sequence[str],
    shapes: Sequence[tuple[int, ...]],
    naive: Path,
    out: Path,
    *,
    seconds: float = 1.0,
    layouts: Sequence[str] = tuple(LAYOUTS),
) -> str:
    """Compares plug-ins with their literal formulas and writes `out` (JSON) and a table beside it (Markdown).

    Args:
        names: Names in `PLUGINS`.
        shapes: Shapes (B, C, H, W).
        naive: Folder with `<name>.py`, or `<name up to the first _>.py`, for each; its `naive_of(plugin)` gives the
            literal module with the plug-in's weights.
        out: The JSON file.
        seconds: CPU time of each of the three contenders, on average, for each row.
        layouts: `NCHW`, `NHWC` or both.

    Returns:
        The table.

    Raises:
        FileNotFoundError: If there is no literal formula of a plug-in.
        ValueError: If a name is unknown, or the two contenders disagree.
    """
    for name in names:
        resolve_plugin(name)
    literal = {name: _literal(naive, name) for name in names}
    record: dict[str, Any] = {**_surroundings(), "seconds": seconds, "rows": []}
    cases = list(product(names, shapes, layouts, MODES))
    with _one_thread():
        for number, (name, shape, layout, mode) in enumerate(cases, 1):
            row = {"plugin": name, "shape": list(shape), "layout": layout, "mode": mode}
            row |= compare(PLUGINS[name], literal[name], shape, layout, mode, seconds)
            record["rows"].append(row)
            print(f"[{number}/{len(cases)}] {name} {_size(shape)} {layout} {mode}: {_ratio(row)}", flush=True)
    with replacing(out) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n")
    table = write_table(record)
    with replacing(out.with_suffix(".md")) as temporary:
        temporary.write_text(table)
    return table


def compare(
    plugin: Callable[..., nn.Module],
    naive_of: Callable[[nn.Module], nn.Module],
    shape: tuple[int, ...],
    layout: str,
    mode: str,
    seconds: float,
) -> dict[str, Any]:
    """Checks that both contenders agree, then times them: literal time over ours, and the literal one's over its own.

    Args:
        plugin: Our constructor.
        naive_of: Gives the literal module with the weights of ours.
        shape: Shape of the map.
        layout: `NCHW` or `NHWC`.
        mode: `fwd` or `f+b`.
        seconds: CPU time of each contender, on average.

    Raises:
        ValueError: If outputs or input gradients differ by more than 1e-4 of the largest value.
    """
    torch.manual_seed(0)
    ours = plugin(shape[1])
    for tensor in ours.state_dict().values():
        if tensor.is_floating_point():  # Away from the start, where gates may be constant.
            tensor.add_(0.2 * torch.rand(tensor.shape))
    literal = naive_of(ours)
    x, weight = (torch.randn(shape).to(memory_format=LAYOUTS[layout]) for _ in range(2))
    ours.train(mode == "f+b")
    literal.train(mode == "f+b")
    step = {"fwd": _forward, "f+b": _forward_backward}[mode]
    pairs = zip(step(ours, x, weight)[:2], step(literal, x, weight)[:2], strict=True)
    error = max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)
    if not error <= TOLERANCE:
        raise ValueError(
            f"{type(ours).__name__} and its literal formula differ by {error:.1e} at {_size(shape)} {layout} {mode}, "
            f"more than {TOLERANCE:.0e}: nothing was timed"
        )
    rounds = _rounds([ours, literal, literal], lambda module: step(module, x, weight), seconds)
    times = {"ours": [r[0] for r in rounds], "literal": [r[1] for r in rounds]}
    return {
        "error": error,
        "rounds": len(rounds),
        "ratio": _quantiles([literal / ours for ours, literal, _ in rounds]),
        "noise": _quantiles([again / literal for _, literal, again in rounds]),
        "seconds": {name: _quantiles(values) for name, values in times.items()},
    }


def write_table(record: dict[str, Any]) -> str:
    """The Markdown text of a record as `run` writes it: ratios only, every row that was measured."""
    cells: dict[tuple[str, str, str], dict[str, str]] = {}
    for row in record["rows"]:
        key = (row["plugin"], _size(row["shape"]), row["layout"])
        cells.setdefault(key, {})[row["mode"]] = _ratio(row)
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    errors = max(row["error"] for row in record["rows"])
    lines = [
        "# Plug-ins on one CPU thread",
        "",
        "How many times as fast as its paper's formulas, written down literally (`tests/naive`), each plug-in is;",
        "below 1 it is slower. Both have the same weights, and outputs and input gradients were compared first: they",
        f"differ by at most {errors:.1e} of the largest value. Inference is a forward pass in eval mode without",
        "gradients, training a forward and a backward pass in train mode.",
        "",
        "Each round runs both in turns and gives one ratio of thread CPU times; a cell shows their median, the range",
        "of 80 % of them, the number of rounds, and as noise the same range for the literal formula against itself.",
        "",
        f"{versions}; {record['cpu']}; float32; revision {record['revision']}.",
        "",
        "| plug-in | map | layout | inference | training |",
        "|---|---|---|---|---|",
    ]
    lines += [f"| {' | '.join(key)} | {' | '.join(modes.get(m, '') for m in MODES)} |" for key, modes in cells.items()]
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


def _literal(folder: Path, name: str) -> Callable[[nn.Module], nn.Module]:
    stem = next((stem for stem in (name, name.split("_")[0]) if (folder / f"{stem}.py").is_file()), None)
    if stem is None:
        raise FileNotFoundError(f"no literal formula of {name} in {folder}; --naive names the folder (tests/naive)")
    # A package of its own, so that its files may import each other, whatever the folder is called.
    package = ModuleType(f"_literal_{abs(hash(folder.resolve()))}")
    package.__path__ = [str(folder.resolve())]
    sys.modules.setdefault(package.__name__, package)
    return importlib.import_module(f"{package.__name__}.{stem}").naive_of


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _surroundings() -> dict[str, Any]:
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
