"""Training steps of a ResNet-50 with a plug-in in each block over those of the plain network, and their floors.

    python -m visionattn.benchmark.steps [PLUGIN ...] [--out docs/results/steps.md]

All networks take turns, so that whatever else the machine does meets all of them alike, and each round gives a ratio.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.resnet import Bottleneck
from torch import nn

from visionattn.catalog import Card, get
from visionattn.ops import axis_attention
from visionattn.plugins._epilogue import fuse_epilogue
from visionattn.profiling.operator_counter import count_traffic
from visionattn.utils.tables import format_table

from .cases import LAYOUTS
from .record import surroundings, versions_of
from .timing import cpu_clock, measure_ceilings, one_thread, quantiles, take_turns

__all__ = ["main", "measure_steps"]

PLUGINS = ("cbam", "coord", "ulsam", "triplet", "bmta", "ela_l")
# What a plain block moves after its branch, in T: sum R, R, W; ReLU R, W; its gradient R, R, W. A plug-in that does
# this in its own passes reads the residual and the result and writes their gradient.
_PLAIN, _FUSED = 8, 3
Row = dict[str, float]


class OnePool(nn.Module):
    """The least that a plug-in can do: a mean over the channels and its sigmoid as a gate; no parameters.

    Args:
        channels: Ignored; any.
    """

    fuses_residual = True

    def __init__(self, channels: int, **kwargs: Any) -> None:
        super().__init__()

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None, relu: bool = False) -> torch.Tensor:
        return axis_attention(x, (("mean", 1),), ((1,),), self._gates, residual=residual, relu=relu)

    def _gates(self, mean: torch.Tensor) -> list[torch.Tensor]:
        return [mean.sigmoid().unsqueeze(1)]


def measure_steps(
    plugins: Sequence[str] = PLUGINS, *, batch: int = 2, size: int = 224, layout: str = "NCHW", rounds: int = 9
) -> dict[str, Row]:
    """Quantiles of a step's time over the plain network's, by network; one thread of the CPU.

    `least` is the ratio of the shortest steps, `floor` the least that any implementation of a plug-in can reach.

    Args:
        plugins: Names of plug-ins; `timm-NAME` is timm's own layer of a name, `one-pool` is `OnePool`.
        batch: Images.
        size: Their side.
        layout: `NCHW` or `NHWC`.
        rounds: In which each network makes a step.

    Raises:
        ValueError: If a plug-in's card states no floor.
    """
    torch.manual_seed(0)
    x = torch.randn(batch, 3, size, size).to(memory_format=LAYOUTS[layout])
    names = ("plain", *plugins)
    networks = [_network(name).train().to(memory_format=LAYOUTS[layout]) for name in names]
    steps: list[Callable[[int], object]] = [partial(_step, network, x) for network in networks]
    with one_thread():
        ceilings = measure_ceilings("cpu", (torch.float32,))
        for step in steps:
            step(0)
        times = take_turns(steps, cpu_clock, seconds=0, min_rounds=rounds)
    plain, shapes = statistics.median(row[0] for row in times), _maps(x.shape)
    found: dict[str, Row] = {}
    for at, name in enumerate(names):
        found[name] = quantiles([row[at] / row[0] for row in times])
        found[name]["least"] = min(row[at] for row in times) / min(row[0] for row in times)
        if name not in ("plain", "one-pool") and not name.startswith("timm-"):
            found[name]["floor"] = 1 + _least_seconds(get("plugin", name), shapes, ceilings) / plain
    return found


def _least_seconds(card: Card, shapes: Sequence[torch.Size], ceilings: dict[str, float]) -> float:
    """What a plug-in adds to a plain step at least: its card's passes at a copy's speed, and its products."""
    if card.floor is None:
        raise ValueError(f"the card of {card.name} states no floor")
    seconds = 0.0
    for shape in shapes:
        x = torch.empty(shape, device="meta")
        traffic = count_traffic(card.constructor(shape[1], device="meta").train(), x)
        moved = card.floor.forward + card.floor.backward + _FUSED - _PLAIN
        seconds += moved * x.nbytes / max(ceilings["copy"], ceilings["scale"])
        seconds += (traffic.forward.flops + traffic.backward.flops) / ceilings["product float32"]
    return seconds


def _maps(images: torch.Size) -> list[torch.Size]:
    """The shapes of the maps that the plug-ins get."""
    shapes: list[torch.Size] = []
    network = timm.create_model("resnet50", device="meta")
    for module in network.modules():
        if isinstance(module, Bottleneck):
            module.register_forward_hook(lambda _, inputs, output: shapes.append(output.shape))
    network(torch.empty(images, device="meta"))
    return shapes


def _network(name: str) -> nn.Module:
    if name == "plain":
        return timm.create_model("resnet50", zero_init_last=False)
    if name != "one-pool" and not name.startswith("timm-"):
        return timm.create_model(f"va_resnet50_{name}")
    layer: Any = {"attn_layer": OnePool if name == "one-pool" else name.removeprefix("timm-")}
    network = timm.create_model("resnet50", zero_init_last=False, block_args=layer)
    for module in network.modules() if name == "one-pool" else ():
        fuse_epilogue(module)
    return network


def _step(network: nn.Module, x: torch.Tensor, _: int) -> None:
    network.zero_grad()
    network(x).square().mean().backward()


def _page(tables: dict[str, dict[str, Row]], batch: int, size: int) -> str:
    """The tables of both layouts in Markdown."""
    around = surroundings("cpu")
    versions = versions_of(around)
    lines = [
        "# Training steps of a ResNet-50 with a plug-in in each block",
        "",
        "Time of a step, forward and backward pass, over that of the plain ResNet-50, on one thread of a CPU that",
        f"others used at the same time; {batch} pictures of {size}x{size}, float32. The networks take turns, each",
        "round gives a ratio.",
        "",
        "    python -m visionattn.benchmark.steps --out docs/results/steps.md",
        "",
        "- **least**: the shortest step of a network over the shortest one of the plain network.",
        "- **floor**: no implementation gets below: the passes over the map that the plug-in's card counts, addition",
        "  and ReLU among them, less the 8 T of the plain block's, at the speed of a copy measured in the same run,",
        "  and the operations of its products at that of a square one. Maxima, sigmoids and all that is small take no",
        "  time there.",
        "- **one-pool** is the least plug-in in practice: a mean over the channels, its sigmoid as a gate, by the same",
        "  passes as the others. **timm-cbam** is timm's own layer.",
        "",
    ]
    for layout, found in tables.items():
        lines += [f"## {layout}", "", "| network | median | 10 % to 90 % | least | floor |", "|---|---|---|---|---|"]
        lines += [f"| {' | '.join(row)} |" for row in _rows(found)] + [""]
    return "\n".join([*lines, f"{versions}; {around['device']['name']}; revision {around['revision']}.", ""])


def _rows(found: dict[str, Row]) -> list[tuple[str, ...]]:
    return [
        (
            name,
            f"{q['p50']:.3f}",
            f"{q['p10']:.2f} to {q['p90']:.2f}",
            f"{q['least']:.3f}",
            f"{q['floor']:.3f}" if "floor" in q else "",
        )
        for name, q in found.items()
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the ratios as tables."""
    parser = argparse.ArgumentParser(prog="python -m visionattn.benchmark.steps", description=main.__doc__)
    default = [*PLUGINS, "one-pool", "timm-cbam"]
    parser.add_argument("plugins", nargs="*", default=default, help="names; timm-NAME: timm's layer")
    parser.add_argument("--batch", type=int, default=2, help="images")
    parser.add_argument("--size", type=int, default=224, help="side of the images")
    parser.add_argument("--layout", choices=LAYOUTS, nargs="+", default=[*LAYOUTS], help="of the images and weights")
    parser.add_argument("--rounds", type=int, default=9, help="steps of each network")
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    options = parser.parse_args(arguments)
    tables = {}
    for layout in options.layout:
        tables[layout] = measure_steps(
            options.plugins, batch=options.batch, size=options.size, layout=layout, rounds=options.rounds
        )
        rows = [(layout, "median", "10 % to 90 %", "least", "floor"), *_rows(tables[layout])]
        print(format_table(rows), flush=True)
    if options.out is not None:
        options.out.write_text(_page(tables, options.batch, options.size))


if __name__ == "__main__":
    main()
