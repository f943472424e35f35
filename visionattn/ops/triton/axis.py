"""Pools over the axes of a map, and gates that lack some of its axes, by the kernels of `_axis_kernels`.

The gradient of a map that is pooled and gated takes two passes, not one for each use: the map goes *through* the pools,
whose backward adds their gradients to that of the gate. In `axis_attention` the gate's backward does not even store the
product of gradient and gate: it hands both to the pools' backward. It hands the gates over as the gradients of tickets,
tensors that the pools give for this and nothing else.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from visionattn.ops._axis import join_gates, spread_pools
from visionattn.ops.eager._function import Function, formula_gradients
from visionattn.ops.nested_gate import gated_pools

from . import _axis_launch as launch

__all__ = ["axis_attention", "axis_gate", "axis_pools", "cross_gate", "map_pools", "nested_gate"]


def axis_pools(x: torch.Tensor, pools: Sequence[tuple[str, int]]) -> tuple[torch.Tensor, ...]:
    means, maxima = _sets(pools)
    if x.requires_grad and torch.is_grad_enabled():
        return _in_order(pools, _Pools.apply(x, tuple(means), tuple(maxima), (), "product", False)[1:])
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
    through, *found = _Pools.apply(x, tuple(means), tuple(maxima), broadcast, join, own)
    made = [gate.to(x.dtype) for gate in gates(*_in_order(pools, found))]
    return _Gate.apply(through, x, None if own else residual, join, own, relu, *made, *found[count:])


def cross_gate(x: torch.Tensor, channel: torch.Tensor, spatial: torch.Tensor, mode: str) -> torch.Tensor:
    return launch.axis_gate(x, [channel, spatial], None, mode, True, True, False)


def map_pools(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    if not (x.requires_grad and torch.is_grad_enabled()):
        return x, *launch.axis_pool(x, None, [3], [3])[:2]
    return _Pools.apply(x, (3,), (3,), (), "product", False)[:3]


def nested_gate(
    x: torch.Tensor, channel: torch.Tensor, spatial: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    channel = channel[:, :, None, None]
    if torch.is_grad_enabled() and (x.requires_grad or channel.requires_grad):
        x, maximum, mean = _ProductPools.apply(x, channel)[:3]
    else:
        mean, maximum, _ = launch.axis_pool(x, channel, [4], [4])
    return axis_gate(x, channel, spatial(torch.stack((maximum, mean), dim=1)))


class _Pools(Function):
    """The map itself, its means, maxima and their indices, and tickets for gates that broadcast over some axes."""

    @staticmethod
    def forward(
        x: torch.Tensor,
        means: tuple[int, ...],
        maxima: tuple[int, ...],
        broadcast: tuple[int, ...],
        join: str,
        own: bool,
    ) -> tuple[torch.Tensor, ...]:
        tickets = [x.new_zeros(()).expand(_without(x, axes)) for axes in broadcast]
        return x.view_as(x), *launch.axis_pool(x, None, list(means), list(maxima)), *tickets

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
        x, ctx.means, ctx.maxima, broadcast, ctx.join, ctx.own = inputs
        ctx.shape, ctx.nhwc, ctx.tickets = x.shape, launch.is_nhwc(x), len(broadcast)
        first = 1 + len(ctx.means) + len(ctx.maxima)
        indices = output[first : first + len(ctx.maxima)]
        ctx.save_for_backward(*indices)
        ctx.mark_non_differentiable(*indices)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor | None, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        means = [(axes, part) for axes, part in zip(ctx.means, grads, strict=False) if part is not None]
        of_maxima = zip(ctx.maxima, grads[len(ctx.means) :], ctx.saved_tensors, strict=False)
        maxima = [(axes, part, index) for axes, part, index in of_maxima if part is not None]
        if grad is None and not means and not maxima:
            return None, None, None, None, None, None
        gates: list[Any] = [] if grad is None else list(grads[len(grads) - ctx.tickets :])
        if torch.is_grad_enabled():
            if grad is not None and gates:
                grad = grad * (join_gates(gates, ctx.join) + int(ctx.own))
            named = [(_named(axes), mean) for axes, mean in means]
            named_maxima = [(_named(axes), maximum, index.long()) for axes, maximum, index in maxima]
            return spread_pools(grad, ctx.shape, named, named_maxima), None, None, None, None, None
        x_grad = launch.axis_spread(
            grad, gates, ctx.join, ctx.own, list(ctx.shape), ctx.nhwc,
            [mean for _, mean in means], [axes for axes, _ in means],
            [maximum for _, maximum, _ in maxima], [index for _, _, index in maxima], [axes for axes, _, _ in maxima],
        )  # fmt: skip
        return x_grad, None, None, None, None, None


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
        relu: bool,
        *gates_and_tickets: torch.Tensor,
    ) -> torch.Tensor:
        gates = list(gates_and_tickets[: len(gates_and_tickets) // 2])
        return launch.axis_gate(through, gates, residual, join, own, False, relu)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        _, x, residual, ctx.join, ctx.own, relu, *gates_and_tickets = inputs
        ctx.residual = residual is not None
        gates = gates_and_tickets[: len(gates_and_tickets) // 2]
        ctx.save_for_backward(x, output if relu else None, *gates)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, y, *gates = ctx.saved_tensors
        relu = y is not None
        if torch.is_grad_enabled():
            dz = dy * (y > 0) if relu else dy
            _, *grads = launch.gate_gradients(dz, x, gates, ctx.join, ctx.own, False)
            return dz, None, dz if ctx.residual else None, None, None, None, *grads, *gates
        _, dz, *grads = launch.axis_gate_backward(dy, y, x, gates, ctx.join, ctx.own, False, False, relu)
        dz = dz if relu else dy
        return dz, None, dz if ctx.residual else None, None, None, None, *grads, *gates


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
