"""Gates that broadcast over some axes of a map, and attention made of pooling and such a gate."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ._axis import JOINS, fits_gates, join_gates, refuses_gates, refuses_map
from ._dispatch import has_kernel
from ._modes import needs_formula, use_eager_kernel
from .axis_pools import pools_of, refuses_pools
from .eager.axis_gate import AxisGate
from .eager.axis_pools import map_and_pools
from .eager.nested_gate import pays
from .layout import memory_format, stores_channels_last, to_layout_of

__all__ = ["axis_attention", "axis_gate", "gate_by"]


def _refuses_gate(
    x: torch.Tensor,
    *gates: torch.Tensor,
    join: str = "product",
    residual: torch.Tensor | None = None,
    relu: bool = False,
) -> str:
    if len(gates) not in JOINS.get(join, ()):
        return "the gates cannot be joined so"
    return refuses_gates(x, gates, residual)


@has_kernel("axis", _refuses_gate)
def axis_gate(
    x: torch.Tensor,
    *gates: torch.Tensor,
    join: str = "product",
    residual: torch.Tensor | None = None,
    relu: bool = False,
) -> torch.Tensor:
    """`x * gate + residual`, then ReLU. `(B, C, H, W)`, same out, in the dtype and layout of `x`.

    Kernels read the map once and write it once, whatever the gates; so do their gradients with the map's and its own.

    Args:
        x: The map.
        *gates: Up to three, each with the map's batch and of its size or 1 along C, H and W: a gate of the channels is
            `(B, C, 1, 1)`, one of the rows `(B, C, H, 1)`.
        join: How they make one gate: `product`; `sum`; `mixed`, the product of the first two and the third added.
        residual: Added if given; `x` itself may be, then it is not read twice.
        relu: Whether a ReLU comes last.

    Raises:
        ValueError: If `join` is unknown or takes another number of gates, or a gate has another shape.
    """
    return gate_by(x, gates, join, residual, relu)


def gate_by(
    x: torch.Tensor,
    gates: Sequence[torch.Tensor],
    join: str = "product",
    residual: torch.Tensor | None = None,
    relu: bool = False,
) -> torch.Tensor:
    """`axis_gate` for operations that have chosen PyTorch's code: small maps pay for asking again."""
    if len(gates) not in JOINS.get(join, ()):
        known = "product (1 to 3 gates), sum (2 or 3) or mixed (3)"
        raise ValueError(f"join must be {known}, got {join!r} for {len(gates)} gates")
    if not fits_gates(x, *gates):
        sizes = ", ".join(str(tuple(gate.shape)) for gate in gates)
        raise ValueError(f"gates must have sizes of the map or 1, got {sizes} for {tuple(x.shape)}")
    # In the map's layout, so that the products over all positions run densely.
    dtype, layout = x.dtype, memory_format(x)
    gates = [(gate if gate.dtype == dtype else gate.to(dtype)).contiguous(memory_format=layout) for gate in gates]
    if stores_channels_last(x):
        gates = [to_layout_of(x, gate) for gate in gates]
    own = residual is x
    residual = None if residual is None else residual.to(dtype)
    # The pass by hand keeps no joined gate. On the CPU plain operators are faster for small maps, elsewhere for sums.
    if pays(x) if use_eager_kernel(x) else join != "sum" and not needs_formula():
        rest = None if own else residual
        return AxisGate.apply(x.contiguous(memory_format=layout), rest, join, own, relu, 1, *gates)
    gate = join_gates(gates, join)
    y = x * gate if residual is None else torch.addcmul(residual, x, gate)
    return y.relu() if relu else y


def _refuses_attention(x: torch.Tensor, pools: Sequence[tuple[str, int]], *args: Any, **kwargs: Any) -> str:
    return refuses_map(x) or refuses_pools(x, pools)


@has_kernel("axis", _refuses_attention)
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
    """`axis_gate(x, *gates(*axis_pools(x, pools)), ...)`. `(B, C, H, W)`, same out, in the dtype and layout of `x`.

    As one operation its gradient is one, too: nothing of a map's size is stored or added up between pools and gate.

    Args:
        x: The map.
        pools: As for `axis_pools`.
        broadcast_dims: For each gate the axes along which it has size 1, among 1 (C), 2 (H) and 3 (W).
        gates: Makes the gates of the pools, as `axis_gate` takes them.
        join: As for `axis_gate`.
        residual: As there.
        relu: As there.
    """
    if not pays(x):
        return gate_by(x, tuple(gates(*pools_of(x, pools))), join, residual, relu)
    through, *pooled = map_and_pools(x, tuple(pools))
    residual = through if residual is x else residual
    return gate_by(through, tuple(gates(*pooled)), join, residual, relu)
