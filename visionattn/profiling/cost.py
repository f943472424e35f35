"""The cost that each plug-in adds to a ResNet-50: parameters, multiplications, memory saved for backward.

All of it is counted, nothing measured, so the numbers are the same everywhere.
"""

import csv
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import visionattn.models  # noqa: F401  (registers the networks)
from visionattn.plugins import list_plugins
from visionattn.utils.files import replacing

from .operator_counter import saved_bytes

__all__ = ["Cost", "count_macs", "format_table", "measure", "write_table"]

# In training, BAM normalises single vectors and so needs two images.
BATCH = 2


@dataclass(frozen=True)
class Published:
    """Published figures for the same network.

    Args:
        params: Parameters, in their words.
        gflops: Operations, in their words and unit.
        source: Where.
        remark: Why ours differs, or that it does not.
    """

    params: str = ""
    gflops: str = ""
    source: str = ""
    remark: str = ""


_STRIDE = (
    "3.858 G is a ResNet-50 with its strides in the 1x1 convolutions; the official code, as ours, has them in the 3x3"
)
_ELA = Published(
    "+0.03 %", "", "ELA paper", "the paper's place is not published as code; ours is every block's full width"
)
PUBLISHED = {
    "none": Published("25.56 M", "3.858", "CBAM paper, table 4", _STRIDE),
    "cbam": Published("28.09 M", "3.864", "CBAM paper, table 4", f"parameters agree; {_STRIDE}"),
    "triplet": Published(
        "25,561,832",
        "4.169",
        "official code; its README",
        "parameters equal; the normalisations and ReLUs that we leave out would be 0.032 G of the 0.034 G",
    ),
    "bam, after stages 1 to 3": Published("25,915,099", "", "official code", "parameters equal"),
    "pkcam": Published(
        "25,557,293", "", "official code", "theirs holds 44 weights that nothing uses, in the first block of each stage"
    ),
    **dict.fromkeys(("ela_t", "ela_b", "ela_s", "ela_l"), _ELA),
}


@dataclass(frozen=True)
class Cost:
    """The costs of one network.

    Args:
        name: Which plug-in, and where if it is not in every block.
        params: Number of trained values.
        macs: Multiplications with additions of one image: convolutions and matrix products.
        saved: Bytes that a forward pass in train mode keeps for the backward pass, of one image.
    """

    name: str
    params: int
    macs: int
    saved: int


def measure(size: int = 224, names: Sequence[str] = ()) -> list[Cost]:
    """The costs of a ResNet-50 without attention, with each plug-in in every block, and with those that go elsewhere.

    Args:
        size: Side of the picture.
        names: Which plug-ins; all by default.
    """
    networks: dict[str, tuple[str, dict[str, str]]] = {"none": ("resnet50", {})}
    networks |= {name: ("va_resnet50_cbam", {"plugin": name}) for name in list_plugins()}
    networks |= {"bam, after stages 1 to 3": ("va_resnet50_bam", {}), "pkcam": ("va_resnet50_pkcam", {})}
    return [
        _measure(name, model, kwargs, size)
        for name, (model, kwargs) in networks.items()
        if not names or name in ("none", *names)
    ]


def count_macs(network: nn.Module, input_size: Sequence[int], batch: int = 1) -> int:
    """Multiplications with additions of one picture in convolutions and matrix products, in evaluation mode.

    Args:
        network: On the meta device, where nothing is computed and nothing hides in a fused operator.
        input_size: Channels, height and width.
        batch: Pictures at a time, for a network that needs several.
    """
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(torch.empty(batch, *input_size))
    return counter.get_total_flops() // (2 * batch)


def format_table(costs: Sequence[Cost], size: int) -> str:
    """The costs as Markdown.

    Args:
        costs: What `measure` gives: the network without attention first.
        size: Side of the picture they were counted for.
    """
    lines = [
        f"# What plug-ins cost in a ResNet-50 at {size} px",
        "",
        "In every residual block, before the addition, unless the first column says otherwise. Counted, not measured:",
        "",
        "- **MACs**: multiplications with additions in convolutions and matrix products, of one image. Elementwise",
        "  operations, pools and normalisations are left out.",
        "- **kept**: memory that a forward pass in train mode keeps for the backward pass on the CPU in float32, of",
        f"  one image (a batch of {BATCH}, divided), without parameters and buffers.",
        "- **published**: what papers and official codes state for the same network; empty where we know of nothing.",
        '  They write "FLOPs" for MACs.',
        "",
        "| plug-in | parameters | added | MACs (G) | kept (MB) | published parameters | published GFLOPs | from "
        "| difference |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for cost in costs:
        stated = PUBLISHED.get(cost.name, Published())
        added = cost.params - costs[0].params
        counted = [f"{cost.params:,}", f"{added:,} ({added / costs[0].params:.2%})", f"{cost.macs / 1e9:.3f}"]
        counted += [f"{cost.saved / 1e6:.1f}", stated.params, stated.gflops, stated.source, stated.remark]
        lines.append(f"| {cost.name} | {' | '.join(counted)} |")
    return "\n".join([*lines, "", "Made by `visionattn cost`.", ""])


def write_table(costs: Sequence[Cost], size: int, path: Path) -> str:
    """Writes the costs as Markdown to `path`, and as CSV with all digits beside it.

    Args:
        costs: What `measure` gives: the network without attention first.
        size: Side of the picture they were counted for.
        path: A `.md` file.

    Returns:
        The Markdown text.
    """
    text = format_table(costs, size)
    with replacing(path.with_suffix(".csv")) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(field.name for field in fields(Cost))
        writer.writerows(astuple(cost) for cost in costs)
    with replacing(path) as temporary:
        temporary.write_text(text)
    return text


def _measure(name: str, model: str, kwargs: dict[str, Any], size: int) -> Cost:
    macs = count_macs(timm.create_model(model, device="meta", **kwargs), (3, size, size))
    network = timm.create_model(model, **kwargs).train()
    return Cost(
        name,
        params=sum(p.numel() for p in network.parameters()),
        macs=macs,
        saved=saved_bytes(network, torch.randn(BATCH, 3, size, size)) // BATCH,
    )
