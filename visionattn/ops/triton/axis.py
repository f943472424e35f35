"""Pools over the axes of a map, and gates that lack some of its axes, by the kernels of `_axis_kernels`.

The gradient of a map that is pooled and gated takes two passes, not one for each use: the map goes *through* the pools,
whose backward adds their gradients to that of the gate. In `axis_attention` the gate's backward does not even store the
product of gradient and gate: it hands both to the pools' backward. It hands the gates over as the gradients of tickets,
tensors that the pools give for this and nothing else.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from visionattn.ops._axis import join_gates, spread_pools
from visionattn.ops.eager._function import Function, formula_gradients
from visionattn.ops.nested_gate import gated_pools

from . import _axis_launch as launch

__all__ = [
    "axis_attention",
    "axis_gate",
    "axis_pools",
    "cross_gate",
    "map_pools",
    "nested_attention",
    "nested_gate",
    "score_gate",
]


def axis_pools(x: torch.Tensor, pools: Sequence[tuple[str, int]]) -> tuple[torch.Tensor, ...]:
    means, maxima = _sets(pools)
    if x.requires_grad and torch.is_grad_enabled():
        return _in_order(pools, _Pools.apply(x, _Uses(tuple(means), tuple(maxima)))[1:])
    return _in_order(pools, launch.axis_pool(x, None, means, maxima))


def axis_gate(
    x: torch.Tensor,
    *gates: torch.Tensor,
    join: str = "product",
    residual: torch.Tensor | None = None,
    relu: bool = False,
) -> torch.Tensor:
    own = residual is x
    return launch.axis_gate(x, list(gates), None if own else residual, join, own, False, relu)


def axis_attention(
    x: torch.Tensor,
    pools: Sequence[tuple[str, int]],
    broadcast_dims: Sequence[Sequence[int]],
    gates: Callable[..., Sequence[torch.Tensor]],
    *,
    join: str = "product",
    residual: torch.Tensor | None = None,
    relu: bool = False,
) -> torch.Tensor:
    means, maxima = _sets(pools)
    own, count = residual is x, len(means) + 2 * len(maxima)
    if not (x.requires_grad and torch.is_grad_enabled()):
        made = gates(*axis_pools(x, pools))
        return axis_gate(x, *made, join=join, residual=residual, relu=relu)
    broadcast = tuple(_axes(*axes) for axes in broadcast_dims)
    through, *found = _Pools.apply(x, _Uses(tuple(means), tuple(maxima), broadcast, join, own))
    made = [gate.to(x.dtype) for gate in gates(*_in_order(pools, found))]
    return _Gate.apply(through, x, None if own else residual, join, own, False, relu, *made, *found[count:])


def cross_gate(x: torch.Tensor, channel: torch.Tensor, spatial: torch.Tensor, mode: str) -> torch.Tensor:
    return launch.axis_gate(x, [channel, spatial], None, mode, True, True, False)


def map_pools(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    if not (x.requires_grad and torch.is_grad_enabled()):
        return x, *launch.axis_pool(x, None, [3], [3])[:2]
    return _Pools.apply(x, _Uses((3,), (3,)))[:3]


def score_gate(
    x: torch.Tensor,
    channel: Callable[[torch.Tensor], torch.Tensor],
    spatial: Callable[[torch.Tensor], torch.Tensor],
    mode: str,
) -> torch.Tensor:
    if not (x.requires_grad and torch.is_grad_enabled()):
        (mean,) = launch.axis_pool(x, None, [3], [])
        return cross_gate(x, channel(mean)[:, :, None, None], spatial(x), mode)
    uses = _Uses((3,), (), (_axes(2, 3), _axes(1)), mode, own=True, sigmoid=True, beside=True)
    through, beside, mean, *tickets = _Pools.apply(x, uses)
    made = [scores.to(x.dtype) for scores in (channel(mean)[:, :, None, None], spatial(beside))]
    return _Gate.apply(through, x, None, mode, True, True, False, *made, *tickets)


def nested_gate(
    x: torch.Tensor,
    channel: torch.Tensor,
    spatial: Callable[[torch.Tensor], torch.Tensor],
    residual: torch.Tensor | None = None,
    relu: bool = False,
) -> torch.Tensor:
    channel = channel[:, :, None, None]
    if torch.is_grad_enabled() and (x.requires_grad or channel.requires_grad):
        x, maximum, mean = _ProductPools.apply(x, channel)[:3]
    else:
        mean, maximum, _ = launch.axis_pool(x, channel, [4], [4])
    gate = spatial(torch.stack((maximum, mean), dim=1))
    return axis_gate(x, channel, gate, residual=residual, relu=relu)


def nested_attention(
    x: torch.Tensor,
    channel: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    spatial: Callable[[torch.Tensor], torch.Tensor],
    residual: torch.Tensor | None = None,
    relu: bool = False,
) -> torch.Tensor:
    if not (x.requires_grad and torch.is_grad_enabled()):
        return nested_gate(x, channel(*map_pools(x)[1:]), spatial, residual, relu)
    uses = _Uses((3,), (3,), (_axes(2, 3), _axes(1)), inner=True)
    through, mean, maximum, _, channel_ticket, spatial_ticket, *inner = _Pools.apply(x, uses)
    gate = channel(mean, maximum).to(x.dtype)[:, :, None, None]
    maximum, mean, _ = _InnerPools.apply(x, gate, *inner)
    made = [gate, spatial(torch.stack((maximum, mean), dim=1)).to(x.dtype)]
    return _Gate.apply(through, x, residual, "product", False, False, relu, *made, channel_ticket, spatial_ticket)


class _Uses(NamedTuple):
    """What is done with a map that is pooled, so that the gradient of all of it is one pass.

    Attributes:
        means: Sets of axes.
        maxima: Likewise.
        broadcast: Of each gate that multiplies the map, the axes that it lacks.
        join: How these make one.
        own: Whether 1 is added to it.
        sigmoid: Whether its sigmoid is taken before.
        beside: Whether the map also goes elsewhere, into operators with gradients of their own.
        inner: Whether the channels of its product with the first gate are pooled.
    """

    means: tuple[int, ...]
    maxima: tuple[int, ...]
    broadcast: tuple[int, ...] = ()
    join: str = "product"
    own: bool = False
    sigmoid: bool = False
    beside: bool = False
    inner: bool = False


class _Pools(Function):
    """The map itself, its means, maxima and their indices, and tickets: for gates, and for the inner pools' gradients.

    An index is handed over as float32, for gradients are floats.
    """

    @staticmethod
    def forward(x: torch.Tensor, uses: _Uses) -> tuple[torch.Tensor, ...]:
        zero = torch.zeros((), dtype=x.dtype, device=x.device)
        tickets = [zero.expand(_without(x, axes)) for axes in uses.broadcast]
        if uses.inner:
            tickets += [part.expand(len(x), *x.shape[2:]) for part in (zero, zero, zero.float())]
        maps = [x.view_as(x) for _ in range(1 + uses.beside)]
        return *maps, *launch.axis_pool(x, None, list(uses.means), list(uses.maxima)), *tickets

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
        x, ctx.uses = inputs
        ctx.shape, ctx.nhwc = x.shape, launch.is_nhwc(x)
        first = 1 + ctx.uses.beside + len(ctx.uses.means) + len(ctx.uses.maxima)
        indices = output[first : first + len(ctx.uses.maxima)]
        ctx.save_for_backward(*indices)
        ctx.mark_non_differentiable(*indices)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor | None, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, None]:
        uses = ctx.uses
        beside, grads = (grads[0], grads[1:]) if uses.beside else (None, grads)
        means = [(axes, part) for axes, part in zip(uses.means, grads, strict=False) if part is not None]
        of_maxima = zip(uses.maxima, grads[len(uses.means) :], ctx.saved_tensors, strict=False)
        maxima = [(axes, part, index) for axes, part, index in of_maxima if part is not None]
        if grad is None and beside is None and not means and not maxima:
            return None, None
        tickets = grads[len(uses.means) + 2 * len(uses.maxima) :]
        gates: list[Any] = [] if grad is None else list(tickets[: len(uses.broadcast)])
        inner: list[Any] = [] if grad is None else list(tickets[len(uses.broadcast) :])
        if any(part is None for part in inner):  # the gate that those pools make is not learnt from
            inner = []
        if torch.is_grad_enabled():
            return _formula(uses, ctx.shape, grad, beside, gates, inner, means, maxima), None
        if inner:
            means.append((_axes(1), inner[0]))
            maxima.append((_axes(1), inner[1], inner[2].int()))
        x_grad = launch.axis_spread(
            grad, beside, gates, uses.join, uses.own, uses.sigmoid, list(ctx.shape), ctx.nhwc,
            [mean for _, mean in means], [axes for axes, _ in means],
            [maximum for _, maximum, _ in maxima], [index for _, _, index in maxima], [axes for axes, _, _ in maxima],
            _axes(1) if inner else 0,
        )  # fmt: skip
        return x_grad, None


def _formula(
    uses: _Uses,
    shape: Sequence[int],
    grad: torch.Tensor | None,
    beside: torch.Tensor | None,
    gates: Sequence[torch.Tensor],
    inner: Sequence[torch.Tensor],
    means: Sequence[tuple[int, torch.Tensor]],
    maxima: Sequence[tuple[int, torch.Tensor, torch.Tensor]],
) -> torch.Tensor:
    """The gradient of a map as a formula that can be differentiated once more."""
    if grad is not None and gates:
        gate = join_gates(gates, uses.join)
        gate = gate.sigmoid() if uses.sigmoid else gate
        grad = grad * (gate + int(uses.own))
    if beside is not None:
        grad = beside if grad is None else grad + beside
    if grad is not None and inner:
        grad = grad + gates[0] * spread_pools(None, shape, [([1], inner[0])], [([1], inner[1], inner[2].long())])
    named = [(_named(axes), mean) for axes, mean in means]
    return spread_pools(grad, shape, named, [(_named(axes), part, index.long()) for axes, part, index in maxima])


class _Gate(Function):
    """The gate of a map that went through `_Pools`, whose backward multiplies with the gates that the tickets get.

    The map itself is what second derivatives lead to: what went through gets nothing but what is to be multiplied.
    """

    @staticmethod
    def forward(
        through: torch.Tensor,
        x: torch.Tensor,
        residual: torch.Tensor | None,
        join: str,
        own: bool,
        sigmoid: bool,
        relu: bool,
        *gates_and_tickets: torch.Tensor,
    ) -> torch.Tensor:
        gates = list(gates_and_tickets[: len(gates_and_tickets) // 2])
        return launch.axis_gate(through, gates, residual, join, own, sigmoid, relu)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        _, x, residual, ctx.join, ctx.own, ctx.sigmoid, relu, *gates_and_tickets = inputs
        ctx.residual = residual is not None
        gates = gates_and_tickets[: len(gates_and_tickets) // 2]
        ctx.save_for_backward(x, output if relu else None, *gates)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, y, *gates = ctx.saved_tensors
        relu = y is not None
        if torch.is_grad_enabled():
            dz = dy * (y > 0) if relu else dy
            _, *grads = launch.gate_gradients(dz, x, gates, ctx.join, ctx.own, ctx.sigmoid)
        else:
            _, dz, *grads = launch.axis_gate_backward(dy, y, x, gates, ctx.join, ctx.own, ctx.sigmoid, False, relu)
            dz = dz if relu else dy
        return dz, None, dz if ctx.residual else None, None, None, None, None, *grads, *gates


class _InnerPools(Function):
    """The maximum and mean over the channels of a map's product with a gate, and the index of that.

    The map's share of their gradients goes to `_Pools`, by tickets.
    """

    @staticmethod
    def forward(
        x: torch.Tensor, gate: torch.Tensor, of_mean: torch.Tensor, of_maximum: torch.Tensor, of_index: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        mean, maximum, index = launch.axis_pool(x, gate, [4], [4])
        return maximum, mean, index

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, ...], output: tuple[torch.Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:2], output[2])
        ctx.mark_non_differentiable(output[2])

    @staticmethod
    def backward(ctx: Any, maximum: torch.Tensor, mean: torch.Tensor, _: None) -> tuple[torch.Tensor | None, ...]:
        x, gate, index = ctx.saved_tensors
        if torch.is_grad_enabled():
            pools = spread_pools(None, x.shape, [([1], mean)], [([1], maximum, index.long())])
            gate_grad = (pools * x).sum((2, 3), keepdim=True)
        else:
            _, gate_grad = launch.axis_pool_backward(None, x, gate, mean, maximum, index, _axes(1))
        return None, gate_grad, mean, maximum, index.float()


class _ProductPools(Function):
    """The map itself, the maximum and mean over the channels of its product with a gate, and the index of that."""

    @staticmethod
    def forward(x: torch.Tensor, gate: torch.Tensor) -> tuple[torch.Tensor, ...]:
        mean, maximum, index = launch.axis_pool(x, gate, [4], [4])
        return x.view_as(x), maximum, mean, index

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, ...], output: tuple[torch.Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs, output[3])
        ctx.mark_non_differentiable(output[3])

    @staticmethod
    def backward(
        ctx: Any, grad: torch.Tensor, maximum: torch.Tensor, mean: torch.Tensor, _: None
    ) -> tuple[torch.Tensor | None, ...]:
        x, gate, index = ctx.saved_tensors
        if torch.is_grad_enabled():
            return formula_gradients(_product_pools, (x, gate), (grad, maximum, mean))
        return tuple(launch.axis_pool_backward(grad, x, gate, mean, maximum, index, 4))


def _product_pools(x: torch.Tensor, gate: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return gated_pools(x, gate.flatten(1))


def _named(axes: int) -> list[int]:
    """A set of axes by their numbers in `(B, C, H, W)`."""
    return [axis for axis in (1, 2, 3) if axes & (8 >> axis)]


def _axes(*axes: int) -> int:
    """A set of axes as a number, as `launch` has them."""
    return sum(8 >> axis for axis in axes)


def _without(x: torch.Tensor, axes: int) -> list[int]:
    return [1 if axes & (8 >> axis) else size for axis, size in enumerate(x.shape)]


def _sets(pools: Sequence[tuple[str, int]]) -> tuple[list[int], list[int]]:
    """The axes of all means and of all maxima, each once, as numbers."""
    means, maxima = (sorted({8 >> axis for kind, axis in pools if kind == wanted}) for wanted in ("mean", "max"))
    return means, maxima


def _in_order(pools: Sequence[tuple[str, int]], found: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    means, maxima = _sets(pools)
    places = [("mean", axes) for axes in means] + [("max", axes) for axes in maxima]
    return tuple(found[places.index((kind, 8 >> axis))] for kind, axis in pools)
