"""Plug-ins on small maps over the official formulation: calls from Python are nearly all that is paid for there.

python -m visionattn.benchmark.small_maps [PLUGIN ...] [--out docs/results/small-maps.md]
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from visionattn.catalog import Card, cards, get

from .cases import LAYOUTS
from .contenders import literal
from .record import surroundings, versions_of
from .timing import cpu_clock, one_thread, quantiles, take_turns

__all__ = ["main", "measure", "names"]

BOUND = 1.1
MODES = ("forward", "training")


def names() -> list[str]:
    """The plug-ins of one map that have an official formulation."""
    return [card.name for card in cards("plugin") if card.standalone and literal(card) is not None]


def measure(
    card: Card, channels: int, side: int, layout: str, mode: str, *, batch: int = 8, seconds: float = 0.1
) -> float:
    """Our time over the official formulation's, the median of rounds in which both take turns; one thread of the CPU.

    Args:
        card: Of the plug-in.
        channels: Width of the map.
        side: Its height and width.
        layout: `NCHW` or `NHWC`.
        mode: `forward`, without gradients, or `training`.
        batch: Images.
        seconds: To measure, for each of both; 15 rounds at least.

    Raises:
        ValueError: If there is no official formulation, or the plug-in cannot have so many channels.
    """
    baseline = literal(card)
    if baseline is None:
        raise ValueError(f"visionattn.reference has no formula of {card.name}")
    ours: nn.Module = card.constructor(channels)
    modules = [module.train(mode == "training") for module in (ours, baseline(ours))]
    x = torch.randn(batch, channels, side, side).to(memory_format=LAYOUTS[layout]).requires_grad_(mode == "training")
    step = _train if mode == "training" else _infer
    steps: list[Callable[[int], object]] = [partial(step, module, x) for module in modules]
    with one_thread():
        rounds = take_turns(steps, cpu_clock, seconds=seconds, min_rounds=15, burst=0.004)
    return quantiles([a / b for a, b in rounds])["p50"]


def _train(module: Any, x: torch.Tensor, _: int) -> None:
    module.zero_grad()
    x.grad = None
    module(x).sum().backward()


def _infer(module: Any, x: torch.Tensor, _: int) -> None:
    with torch.inference_mode():
        module(x)


def _rows(plugins: Sequence[str], channels: Sequence[int], sides: Sequence[int], seconds: float) -> Iterator[list[str]]:
    for name in plugins:
        for width in channels:
            for side in sides:
                ratios = []
                for layout in LAYOUTS:
                    for mode in MODES:
                        ratios.append(measure(get("plugin", name), width, side, layout, mode, seconds=seconds))
                yield [name, f"{width}x{side}x{side}", *(_cell(ratio) for ratio in ratios)]


def _cell(ratio: float) -> str:
    return f"**{ratio:.2f}**" if ratio > BOUND else f"{ratio:.2f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table of our time over the official formulation's."""
    parser = argparse.ArgumentParser(prog="python -m visionattn.benchmark.small_maps", description=main.__doc__)
    parser.add_argument("plugins", nargs="*", default=names(), help="names")
    parser.add_argument("--channels", type=int, nargs="+", default=[16, 64, 256], help="widths")
    parser.add_argument("--sides", type=int, nargs="+", default=[7, 14], help="of the maps")
    parser.add_argument("--seconds", type=float, default=0.05, help="to measure each of two contenders")
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    options = parser.parse_args(arguments)
    around = surroundings("cpu")
    versions = versions_of(around)
    head = ["plug-in", "map", *(f"{layout} {mode}" for layout in LAYOUTS for mode in MODES)]
    lines = [
        "# Plug-ins on small maps",
        "",
        "Our time over that of the official formulation with the same weights, medians of rounds in which both take",
        "turns; 8 images, float32, one thread of a CPU that others used at the same time. Calls from Python are nearly",
        f"all that is paid for here. The goal is {BOUND}; what is above is bold.",
        "",
        "    python -m visionattn.benchmark.small_maps --out docs/results/small-maps.md",
        "",
        f"| {' | '.join(head)} |",
        "|---" * len(head) + "|",
    ]
    print("\n".join(lines), flush=True)
    for row in _rows(options.plugins, options.channels, options.sides, options.seconds):
        lines.append(f"| {' | '.join(row)} |")
        print(lines[-1], flush=True)
    if options.out is not None:
        end = f"{versions}; {around['device']['name']}; revision {around['revision']}."
        options.out.write_text("\n".join([*lines, "", end, ""]))


if __name__ == "__main__":
    main()
