"""Training steps of a ResNet-50 with a plug-in in each block over those of the plain network.

    python -m visionattn.benchmark.steps [PLUGIN ...]

All networks take turns, so that whatever else the machine does meets all of them alike, and each round gives a ratio.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import timm
import torch
from torch import nn

from visionattn.utils.tables import format_table

from .timing import cpu_clock, one_thread, quantiles, take_turns

__all__ = ["main", "measure_steps"]

PLUGINS = ("cbam", "coord", "ulsam", "triplet")
LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}


def measure_steps(
    plugins: Sequence[str] = PLUGINS, *, batch: int = 2, size: int = 224, layout: str = "NCHW", rounds: int = 15
) -> dict[str, dict[str, float]]:
    """Quantiles of a step's time over the plain network's, by network; one thread of the CPU.

    Args:
        plugins: Names of plug-ins; `timm-NAME` is timm's own layer of a name.
        batch: Images.
        size: Their side.
        layout: `NCHW` or `NHWC`.
        rounds: In which each network makes a step.
    """
    torch.manual_seed(0)
    x = torch.randn(batch, 3, size, size).to(memory_format=LAYOUTS[layout])
    networks = {name: _network(name).train().to(memory_format=LAYOUTS[layout]) for name in ("plain", *plugins)}
    steps: list[Callable[[int], object]] = [partial(_step, network, x) for network in networks.values()]
    with one_thread():
        for step in steps:
            step(0)
        times = take_turns(steps, cpu_clock, seconds=0, min_rounds=rounds)
    ratios = {name: [row[at] / row[0] for row in times] for at, name in enumerate(networks)}
    return {name: {**quantiles(found), "least": min(r[at] for r in times) / min(r[0] for r in times)}
            for at, (name, found) in enumerate(ratios.items())}  # fmt: skip


def _network(name: str) -> nn.Module:
    if name == "plain":
        return timm.create_model("resnet50", zero_init_last=False)
    if name.startswith("timm-"):
        layer: Any = {"attn_layer": name.removeprefix("timm-")}
        return timm.create_model("resnet50", zero_init_last=False, block_args=layer)
    return timm.create_model(f"va_resnet50_{name}")


def _step(network: nn.Module, x: torch.Tensor, _: int) -> None:
    network.zero_grad()
    network(x).square().mean().backward()


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the ratios as a table."""
    parser = argparse.ArgumentParser(prog="python -m visionattn.benchmark.steps", description=main.__doc__)
    parser.add_argument("plugins", nargs="*", default=[*PLUGINS, "timm-cbam"], help="names; timm-NAME: timm's layer")
    parser.add_argument("--batch", type=int, default=2, help="images")
    parser.add_argument("--size", type=int, default=224, help="side of the images")
    parser.add_argument("--layout", choices=LAYOUTS, default="NCHW", help="of the images and weights")
    parser.add_argument("--rounds", type=int, default=15, help="steps of each network")
    options = parser.parse_args(arguments)
    found = measure_steps(
        options.plugins, batch=options.batch, size=options.size, layout=options.layout, rounds=options.rounds
    )
    rows = [("network", "median", "10 % to 90 %", "least over least")]
    for name, q in found.items():
        rows.append((name, f"{q['p50']:.3f}", f"{q['p10']:.2f} to {q['p90']:.2f}", f"{q['least']:.3f}"))
    print(format_table(rows))


if __name__ == "__main__":
    main()
