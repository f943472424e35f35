"""The gate of a map with all that may follow it, a few images at a time so that what lies between stays in the cache.

PyTorch would store the joined gate, the product, the sum and their gradients, each as large as the map.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from visionattn.ops._axis import join_gates
from visionattn.ops._modes import needs_formula
from visionattn.ops.layout import as_rows, memory_format

from ._chunks import images_of
from ._function import Function, formula_gradients
from .axis_pools import axis_mean
from .nested_gate import weighted_sum

__all__ = ["AxisGate", "gate_of_groups", "grouped"]


class AxisGate(Function):
    """`x * gate [+ x] [+ residual]`, then ReLU: `apply(x, residual, join, own, relu, groups, *gates)`.

    x and residual `(B, C, H, W)`, x dense; gates as `axis_gate` has them; with `groups` above 1 a gate has a map for
    each group of channels. Keeps x, the gates, and with a ReLU the result.
    """

    @staticmethod
    def forward(
        x: torch.Tensor,
        residual: torch.Tensor | None,
        join: str,
        own: bool,
        relu: bool,
        groups: int,
        *gates: torch.Tensor,
    ) -> torch.Tensor:
        out = torch.empty_like(x)
        residual = None if residual is None else residual.contiguous(memory_format=memory_format(x))
        for (to, part, added), parts in _chunks((out, x, residual), gates, groups):
            _gate(part, added, parts, join, own, to)
            if relu:
                to.relu_()
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        x, _, ctx.join, ctx.own, relu, ctx.groups, *gates = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, output if relu else None, *gates)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor | None) -> tuple[Any, ...]:
        x, y, *gates = ctx.saved_tensors
        if dy is None:  # what comes after has no gradient
            return (None,) * (6 + len(gates))
        if torch.is_grad_enabled() or needs_formula():
            dz = dy if y is None else dy * (y > 0)
            dx, *grads = formula_gradients(
                lambda x, *gates: _formula(x, gates, ctx.join, ctx.own, ctx.groups), (x, *gates), (dz,)
            )
        else:
            dx, dz, *grads = _gradients(ctx, dy.contiguous(memory_format=memory_format(x)), x, y, gates)
        return dx, dz if ctx.needs_input_grad[1] else None, None, None, None, None, *grads


def _formula(x: torch.Tensor, gates: Sequence[torch.Tensor], join: str, own: bool, groups: int) -> torch.Tensor:
    """What `AxisGate` adds a residual to, in PyTorch's operators."""
    gate = join_gates(gates, join)
    if groups > 1:
        gate = gate.repeat_interleave(x.shape[1] // groups, dim=1)
    return torch.addcmul(x, x, gate) if own else x * gate


def _gradients(
    ctx: Any, dy: torch.Tensor, x: torch.Tensor, y: torch.Tensor | None, gates: Sequence[torch.Tensor]
) -> list[Any]:
    """The gradients of x, of what the ReLU got (if someone wants it) and of the gates, in one pass."""
    dx, grads = torch.empty_like(x), [torch.empty_like(gate) for gate in gates]
    dz = dy if y is None else torch.empty_like(x) if ctx.needs_input_grad[1] else None
    room, spare = None, None
    for (to, part, dy_part, y_part, dz_part), parts in _chunks((dx, x, dy, y, dz), [*gates, *grads], ctx.groups):
        parts, outs = parts[: len(gates)], parts[len(gates) :]
        room = torch.empty_like(part) if room is None else room[: len(part)]
        if dz_part is None:
            dz_part = spare = torch.empty_like(part) if spare is None else spare[: len(part)]
        if y_part is not None:
            torch.ops.aten.threshold_backward.grad_input(dy_part, y_part, 0, grad_input=dz_part)
        # The result's memory serves the product first: fresh memory costs as much as another pass.
        torch.mul(dz_part, part, out=to)
        for number, out in enumerate(outs):
            axes = [axis for axis in (1, 2, 3) if out.shape[axis] == 1 < to.shape[axis]]
            out.copy_(_share(to, _factors(parts, number, ctx.join), axes, room).view(out.shape))
        _gate(dz_part, None, parts, ctx.join, ctx.own, to)
    return [dx, dz, *grads]


def _gate(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    gates: Sequence[torch.Tensor],
    join: str,
    own: bool,
    to: torch.Tensor,
) -> None:
    """`x * gate [+ x] [+ residual]` into memory that may hold the joined gate before."""
    gate, *others = gates
    for number, other in enumerate(others):
        combine = torch.add if join == "sum" or (join == "mixed" and number) else torch.mul
        fills = all(max(sizes) == size for *sizes, size in zip(gate.shape, other.shape, to.shape, strict=True))
        gate = combine(gate, other, out=to if fills else None)
    added = x if own else residual
    if added is None:
        torch.mul(x, gate, out=to)
    else:
        torch.addcmul(added, x, gate, out=to)
    if own and residual is not None:
        to += residual


def _factors(gates: Sequence[torch.Tensor], number: int, join: str) -> list[torch.Tensor]:
    """What a gate is multiplied with before it meets the map."""
    if join == "sum" or (join == "mixed" and number == 2):
        return []
    return [gate for at, gate in enumerate(gates[: 2 if join == "mixed" else 3]) if at != number]


def _share(
    product: torch.Tensor, factors: Sequence[torch.Tensor], axes: Sequence[int], room: torch.Tensor
) -> torch.Tensor:
    """The sum of a product's part that belongs to one gate over the axes that this gate lacks."""
    if not factors:
        return _sum(product, axes)
    weight = factors[0] if len(factors) == 1 else factors[0] * factors[1]
    _, channels, height, width = product.shape
    sizes = tuple(weight.shape[1:])
    rows, axis = as_rows(product)
    if axes == [2, 3] and sizes == (1, height, width):
        return weighted_sum(rows, weight.flatten(1), 3 - axis)
    if axes == [1] and sizes == (channels, 1, 1):
        return weighted_sum(rows, weight.flatten(1), axis)
    if axes == [2] and sizes == (channels, height, 1) and axis == 1:
        return weight.view(-1, 1, height) @ product.view(-1, height, width)
    return _sum(torch.mul(product, weight, out=room), axes)


def _sum(x: torch.Tensor, axes: Sequence[int]) -> torch.Tensor:
    if axes == [3] and x.is_contiguous():
        return x.view(-1, x.shape[3]) @ x.new_ones(x.shape[3], 1)  # faster than sums of so short rows
    if len(axes) == 1:
        return axis_mean(x, axes[0]) * x.shape[axes[0]]
    return x.sum(list(axes)) if axes else x


def _chunks(
    maps: Sequence[torch.Tensor | None], gates: Sequence[torch.Tensor], groups: int
) -> Iterator[tuple[list[Any], list[torch.Tensor]]]:
    """Chunks of images of maps and of gates, with groups of channels as images or as maps of their own."""
    x = next(part for part in maps if part is not None)
    nhwc = memory_format(x) == torch.channels_last
    if groups > 1:
        maps = [None if part is None else grouped(part, groups, nhwc) for part in maps]
        gates = [gate_of_groups(part, nhwc) for part in gates]
    every = [*maps, *gates]
    first = next(part for part in maps if part is not None)
    size = images_of(first)
    for start in range(0, len(first), size):
        at = slice(start, start + size)
        parts: list[Any] = [None if part is None else part[at] for part in every]
        yield parts[: len(maps)], parts[len(maps) :]


def grouped(x: torch.Tensor, groups: int, nhwc: bool) -> torch.Tensor:
    """A view with each group of channels as an image; of an NHWC map, `(B, H W, G, C / G)`."""
    if nhwc:
        return x.permute(0, 2, 3, 1).unflatten(3, (groups, -1)).flatten(1, 2)
    return x.unflatten(1, (groups, -1)).flatten(0, 1)


def gate_of_groups(gate: torch.Tensor, nhwc: bool) -> torch.Tensor:
    """The view of a gate `(B, G, H, W)` that fits."""
    return gate.permute(0, 2, 3, 1).flatten(1, 2).unsqueeze(3) if nhwc else gate.flatten(0, 1).unsqueeze(1)
