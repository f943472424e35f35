"""Means and maxima of a map over its axes."""

from collections.abc import Sequence

import torch

from ._axis import refuses_map, refuses_maxima
from ._dispatch import has_kernel
from ._modes import needs_formula
from .eager.axis_pools import axis_pools as eager_axis_pools
from .layout import from_layout_of, memory_format, stores_channels_last
from .max_first import max_first

__all__ = ["axis_pools", "pools_of", "refuses_pools"]

# The joint gradient of NHWC maps of fewer numbers gains less than it costs in calls from Python; so does that of NCHW
# maps of fewer than four times as many.
_WORTHWHILE = 2**15


def refuses_pools(x: torch.Tensor, pools: Sequence[tuple[str, int]]) -> str:
    """Why kernels cannot pool a map so, or ""."""
    maxima = (refuses_maxima(x, x.shape[axis]) for kind, axis in pools if kind == "max")
    return refuses_map(x) or next(filter(None, maxima), "")


@has_kernel("axis", refuses_pools)
def axis_pools(x: torch.Tensor, pools: Sequence[tuple[str, int]]) -> tuple[torch.Tensor, ...]:
    """Pools a map `(B, C, H, W)` over single axes: the results of `x.mean(axis)` and `max_first(x, axis)`.

    Args:
        x: The map, in any layout.
        pools: `("mean", axis)` and `("max", axis)` in any number, each axis 1 (C), 2 (H) or 3 (W).

    Returns:
        One tensor for each pool, with the other axes in their order.
    """
    return pools_of(x, pools)


def pools_of(x: torch.Tensor, pools: Sequence[tuple[str, int]]) -> tuple[torch.Tensor, ...]:
    """`axis_pools` for operations that have chosen PyTorch's code: small maps pay for asking again."""
    if needs_formula():
        return _plain(x, pools)
    if x.requires_grad and torch.is_grad_enabled():
        least = _WORTHWHILE if memory_format(x) == torch.channels_last else 4 * _WORTHWHILE
        if x.numel() < least:
            return _plain(x, pools)
    return eager_axis_pools(x, tuple(pools))


def _plain(x: torch.Tensor, pools: Sequence[tuple[str, int]]) -> tuple[torch.Tensor, ...]:
    return tuple(_pool(x, kind, axis) for kind, axis in pools)


def _pool(x: torch.Tensor, kind: str, axis: int) -> torch.Tensor:
    if stores_channels_last(x) and axis != 1:
        # A maximum is stored as NCHW, however the map lies, unless its axes have the order of memory.
        return from_layout_of(x, _pool(x.permute(0, 2, 3, 1), kind, axis - 1).transpose(1, 2))
    return x.mean(axis) if kind == "mean" else max_first(x, axis)
