"""The achievable speed of blocks: their memory traffic and operations against the hardware's limits.

Everything is counted on the meta device, nothing measured. The unit is T, the bytes of the block's input.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from visionattn import ops
from visionattn.catalog import BlockContext, Card, Floor, cards

from .operator_counter import CATEGORIES, Pass, Traffic, count_traffic

__all__ = ["Block", "blocks", "count", "format_table"]


@dataclass(frozen=True)
class Block:
    """A block to count.

    Args:
        name: A plug-in, a mixer, or `ops.` and a function.
        shapes: Of its inputs, the map first.
        build: Gives the module or the function of the inputs.
        floor: The least that is moved; none if nobody has worked it out.
    """

    name: str
    shapes: tuple[tuple[int, ...], ...]
    build: Callable[[], Callable[..., Any]]
    floor: Floor | None = None


def blocks(batch: int, side: int) -> list[Block]:
    """Every plug-in, mixer and function that passes over a map, in the first stage of a network.

    Args:
        batch: Images.
        side: Of the map, a multiple of 7; with N = side * side positions, N / 49 must be a power of 2.
    """
    plugins = [
        Block(card.name, ((batch, 256, side, side),), partial(card.constructor, 256), card.floor)
        for card in cards("plugin")
        if card.standalone
    ]
    mixers = [block for card in cards("mixer") if card.standalone for block in _mixer_blocks(card, batch, side)]
    return [*plugins, *mixers, *_ops(batch, side, 96)]


def _mixer_blocks(card: Card, batch: int, side: int) -> list[Block]:
    """A mixer in the first stage of a network of the size base: in its first block, and in its second if it differs."""
    places = [BlockContext(stage=0, block=block, dim=128, num_heads=4, grid=(side, side)) for block in (0, 1)]
    differ = card.keywords and card.keywords(places[0]) != card.keywords(places[1])
    names = (card.name, f"{card.name}, second block") if differ else (card.name,)
    shape = (batch, side, side, places[0].dim)
    return [
        Block(name, (shape,), partial(card.build_in, place), card.floor)
        for name, place in zip(names, places, strict=False)
    ]


def count(block: Block, *, dtype: torch.dtype = torch.bfloat16, device: str = "meta") -> Traffic:
    """The memory traffic and operations of one training step of a block.

    Args:
        block: Which.
        dtype: Of everything with fractions.
        device: `meta` for the formulas that accelerators take, `cpu` for those of the CPU.
    """
    torch.manual_seed(0)
    with torch.device(device):
        inputs = [torch.randn(shape, dtype=dtype) for shape in block.shapes]
        function = block.build()
    if isinstance(function, nn.Module):
        function = function.to(dtype).train()
    return count_traffic(function, *inputs)


def format_table(counted: Sequence[tuple[Block, Traffic]], itemsize: int, bandwidth: float, peak: float) -> str:
    """A Markdown table of the counts and the minimum time.

    Args:
        counted: Blocks and their traffic.
        itemsize: Bytes of a number, for the unit T.
        bandwidth: Of the memory, bytes read and written in a second.
        peak: Of products, operations in a second.
    """
    lines = [
        "T: bytes of the block's first input, read or written once. Counted: what PyTorch's operators move forward and",
        "backward, and what they keep between; how the bytes divide among products (matrices, convolutions,",
        "attention), reductions, copies and elementwise operators; how many operators there are. Floor: the least that",
        f"any implementation moves. Forward + backward; ms at {bandwidth / 1e12:g} TB/s and {peak / 1e12:g} TFLOP/s.",
        "",
        "| | input | forward T | backward T | kept T | floor T | products / reductions / copies / elementwise "
        "| operators | GFLOP | counted ms | floor ms |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for block, traffic in counted:
        unit = itemsize
        for size in block.shapes[0]:
            unit *= size
        both = (traffic.forward, traffic.backward)
        floor = block.floor
        cells = [block.name, "x".join(map(str, block.shapes[0]))]
        cells += [f"{amount / unit:.1f}" for amount in (traffic.forward.bytes, traffic.backward.bytes, traffic.saved)]
        cells.append(f"{floor.forward:g} + {floor.backward:g}" if floor else "")
        total = sum(p.bytes for p in both) or 1
        shares = [sum(p.categories.get(c, 0) for p in both) / total for c in CATEGORIES]
        cells += [" / ".join(f"{share:.0%}" for share in shares), " + ".join(str(p.calls) for p in both)]
        cells.append(f"{sum(p.flops for p in both) / 1e9:.1f}")
        cells.append(" + ".join(f"{1e3 * _least(p.bytes, p, bandwidth, peak):.3f}" for p in both))
        least = zip((floor.forward, floor.backward), both, strict=True) if floor else ()
        cells.append(" + ".join(f"{1e3 * _least(t * unit, p, bandwidth, peak):.3f}" for t, p in least))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _least(moved: float, counted: Pass, bandwidth: float, peak: float) -> float:
    return max(moved / bandwidth, counted.flops / peak)


_HEAD = 32


def _ops(batch: int, side: int, width: int) -> list[Block]:
    """The functions of `visionattn.ops`, each with the shapes of its inputs and as a function of these alone."""
    heads, positions = width // _HEAD, side * side
    image, pixel, maps = (batch, width, side, side), (batch, 1, side, side), (batch, 4, side, side)
    tokens, qkv = (batch, positions, width), (batch, positions, 3 * width)
    grid, parts = (batch, side, side, width), (batch, positions, 3, heads, _HEAD)
    width_ = (width,)
    square, projection = (width, width), (3 * width, width)
    pools = [(kind, axis) for axis in (1, 2, 3) for kind in ("mean", "max")]
    split: dict[str, Any] = {"num_heads": heads}

    def clusters(qkv: torch.Tensor) -> Any:
        order = torch.arange(positions, device=qkv.device).view(-1, 49).expand(batch, heads, -1, -1)
        return ops.cluster_attention(qkv, order, overlap=20)

    def windows(x: torch.Tensor, qkv: torch.Tensor, proj: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return ops.window_attention(x, lambda t: t @ qkv, lambda t: t @ proj, window=(7, 7), bias=bias, **split)

    strips = (("mean", 3), ("mean", 2))

    def strip_gates(rows: torch.Tensor, columns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return rows.unsqueeze(3), columns.unsqueeze(2)

    table: dict[str, tuple[Callable[..., Any], tuple[tuple[int, ...], ...]]] = {
        "axis_pools": (lambda x: ops.axis_pools(x, pools), (image,)),
        "map_pools": (ops.map_pools, (image,)),
        "max_first": (lambda x: ops.max_first(x, 1), (image,)),
        "axis_gate": (ops.axis_gate, (image, (*image[:2], 1, 1), pixel)),
        "axis_attention": (lambda x: ops.axis_attention(x, strips, ((3,), (2,)), strip_gates), (image,)),
        "cross_gate": (partial(ops.cross_gate, mode="product"), (image, (*image[:2], 1, 1), pixel)),
        "nested_gate": (lambda x, c: ops.nested_gate(x, c, lambda p: p.mean(1, True)), (image, image[:2])),
        "plane_conv": (ops.plane_conv, ((batch, 2, side, side), (1, 2, 7, 7))),
        "nhwc_conv": (ops.nhwc_conv, (grid, (width, width, 1, 1))),
        "channel_moments": (ops.channel_moments, (image,)),
        "subspace_scores": (ops.subspace_scores, (image, width_, width_, (4, width // 4))),
        "residual_gate": (ops.residual_gate, (image, maps)),
        "attention": (lambda qkv: ops.attention(*qkv.transpose(1, 3).unbind(2)), (parts,)),
        "block_sparse_attention": (
            lambda qkv: ops.block_sparse_attention(qkv, ops.Windows((side, side), (7, 7))),
            (parts,),
        ),
        "window_attention": (windows, (grid, projection[::-1], square, (heads, 49, 49))),
        "stripe_attention": (
            partial(ops.stripe_attention, stripe=(None, 2), **split),
            ((*grid[:3], 3, width), (width, 1, 3, 3)),
        ),
        "halo_attention": (
            lambda qkv, *distances: ops.halo_attention(*qkv.unbind(3), *distances, block_size=7, halo_size=3),
            ((*grid[:3], 3, heads, _HEAD), (25, _HEAD), (25, _HEAD)),
        ),
        "cluster_attention": (clusters, (parts,)),
        "balanced_bisection": (
            lambda qkv: ops.balanced_bisection(qkv[:, :, 0].transpose(1, 2), cluster_size=49),
            (parts,),
        ),
        "channel_attention": (partial(ops.channel_attention, scale=_HEAD**-0.5, **split), (qkv,)),
        "projected_channel_attention": (
            partial(ops.projected_channel_attention, scale=_HEAD**-0.5, **split),
            (tokens, projection, projection[:1], square, width_),
        ),
        "focused_features": (ops.focused_features, (tokens, width_)),
        "focused_attention": (
            lambda qkv, *rest: ops.focused_attention(*qkv.chunk(3, 2), *rest, **split),
            (qkv, width_, tokens[1:]),
        ),
        "large_kernel_conv": (ops.large_kernel_conv, (grid, (heads, 1, 2 * side - 1, 2 * side - 1))),
    }

    def block(name: str, function: Callable[..., Any], shapes: tuple[tuple[int, ...], ...]) -> Block:
        return Block(f"ops.{name}", shapes, lambda: function)

    return [block(name, *row) for name, row in table.items()]
