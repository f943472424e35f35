"""How fast the blocks could be: what each moves and computes, against what memory and arithmetic units allow.

Everything is counted on the meta device, nothing measured. The unit is T, the bytes of the block's input.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from visionattn import mixers, ops
from visionattn.plugins import PLUGINS

from .operator_counter import CATEGORIES, Pass, Traffic, count_traffic

__all__ = ["FLOORS", "Block", "Floor", "blocks", "count", "format_table"]


@dataclass(frozen=True)
class Floor:
    """The least that any implementation moves through memory, in T; what fits on the chip is free.

    Token mixers read and write 6 T in their projections forward, 12 T backward, which stay separate products.

    Args:
        forward: Forward pass.
        backward: Backward pass, which computes anew what is cheaper than to keep.
        reason: Which passes these are; R reads the map or one as large, W writes one.
    """

    forward: float
    backward: float
    reason: str


_POOLS = Floor(3, 4, "all pools are of x: R, then R and W; back R dy, R x, then R dy, W dx")
_WINDOWS = Floor(10, 19, "q, k, v in, o out: 4; back q, k, v, do in, dq, dk, dv out: 7; the rest are projections")
FLOORS = {
    "bam": Floor(3, 5, "both scores R, gate R and W; back R dy, R x, then R dy, W dx, and R x for the convolution"),
    "bmta": _POOLS,
    "cbam": Floor(4, 6, "the second pool needs the first gate, the product both: R, R, R and W; back R dy, R x twice"),
    "coord": _POOLS,
    **{f"ela_{size}": _POOLS for size in "tbsl"},
    "triplet": _POOLS,
    "ulsam": Floor(3, 6, "statistics R (training), scores R, gate W; back two reductions of dy and x, then R and W"),
    "boat": Floor(14, 24, "windows, and k, v once more for siblings, v for the convolution"),
    "cswin": _WINDOWS,
    "davit channels": Floor(3, 5, "x' x from R, then R and W: no projected map; back R x, R dy twice, W dx"),
    "davit windows": _WINDOWS,
    "flatten": Floor(11, 22, "k, v in: 2, then q, v in, o out: 3; back recomputes the features; projections"),
    "halo": _WINDOWS,
    "pool": Floor(2, 2, "R and W, each way"),
    "twins global": Floor(7, 16, "q and o of full size, keys of an eighth of the side; projections"),
    "twins local": _WINDOWS,
    "windows": _WINDOWS,
}


@dataclass(frozen=True)
class Block:
    """Something to count.

    Args:
        name: A plug-in, a mixer, or `ops.` and a function.
        shapes: Of its inputs, the map first.
        build: Gives the module or the function of the inputs.
    """

    name: str
    shapes: tuple[tuple[int, ...], ...]
    build: Callable[[], Callable[..., Any]]


def blocks(batch: int, side: int) -> list[Block]:
    """Every plug-in, mixer and function that passes over a map, in the first stage of a network.

    Args:
        batch: Images.
        side: Of the map, a multiple of 7; with N = side * side positions, N / 49 must be a power of 2.
    """
    plugins = [Block(name, ((batch, 256, side, side),), partial(PLUGINS[name], 256)) for name in PLUGINS]
    token_mixers = [
        Block(name, ((batch, side, side, dim),), partial(build, dim, side)) for name, (dim, build) in _MIXERS.items()
    ]
    return [*plugins, *token_mixers, *_ops(batch, side, 96)]


def count(block: Block, *, dtype: torch.dtype = torch.bfloat16, device: str = "meta") -> Traffic:
    """What one training step of a block moves and computes.

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
    """Markdown of what was counted, and the time that it takes at least.

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
        floor = FLOORS.get(block.name)
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


# Each with its width in the first stage of its network, and how to build it for a width and a side.
_MIXERS: dict[str, tuple[int, Callable[[int, int], nn.Module]]] = {
    "boat": (96, lambda dim, side: mixers.FeatureSpaceLocalAttention(dim, num_heads=3)),
    "cswin": (64, lambda dim, side: mixers.CrossShapedWindowAttention(dim, num_heads=2, split_size=2)),
    "davit channels": (96, lambda dim, side: mixers.ChannelAttention(dim, num_heads=3)),
    "davit windows": (96, lambda dim, side: mixers.SpatialWindowAttention(dim, num_heads=3)),
    "dwconv": (96, lambda dim, side: mixers.DepthwiseConvMixer(dim)),
    "flatten": (64, lambda dim, side: mixers.FocusedLinearAttention(dim, num_heads=2, grid_size=side)),
    "halo": (64, lambda dim, side: mixers.HaloAttention(dim, num_heads=2)),
    "lkca": (96, lambda dim, side: mixers.LargeKernelConvAttention(dim, grid_size=side, groups="heads", num_heads=3)),
    "pool": (64, lambda dim, side: mixers.AveragePool(dim)),
    "spatial reduction": (64, lambda dim, side: mixers.SpatialReductionAttention(dim, num_heads=1, sr_ratio=8)),
    "twins global": (64, lambda dim, side: mixers.GlobalSubsampledAttention(dim, num_heads=2, sr_ratio=8)),
    "twins local": (64, lambda dim, side: mixers.LocallyGroupedAttention(dim, num_heads=2, pad_mask="none")),
    "windows": (96, lambda dim, side: mixers.WindowAttention(dim, num_heads=3)),
    "windows, shifted": (96, lambda dim, side: mixers.WindowAttention(dim, num_heads=3, shift_size=3)),
}
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
    split = {"num_heads": heads}

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
    return [Block(f"ops.{name}", shapes, lambda f=function: f) for name, (function, shapes) in table.items()]
