"""Gates a map by channel and then by position, the second gate computed from the output of the first."""

from collections.abc import Callable

import torch

from ._axis import refuses_gates, refuses_map, refuses_maxima
from ._dispatch import has_kernel
from .axis_gate import gate_by
from .eager import nested_gate as eager
from .max_first import max_first

__all__ = ["gated_pools", "map_pools", "nested_attention", "nested_gate"]


def _refuses_pools(x: torch.Tensor) -> str:
    return refuses_map(x) or refuses_maxima(x, x.shape[2] * x.shape[3])


@has_kernel("axis", _refuses_pools)
def map_pools(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The map itself, to be used in its place, and the mean and maximum of each channel.

    `(B, C, H, W) -> (B, C, H, W), (B, C), (B, C)`. Where values tie, the gradient goes to the first.
    """
    if eager.pays(x) and x.requires_grad and torch.is_grad_enabled():
        return eager.MapPools.apply(_pools, x)[:3]
    return _pools(x)


def _pools(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return x, x.mean((2, 3)), eager.whole_max(x)


def _refuses_gate(
    x: torch.Tensor,
    channel: torch.Tensor,
    spatial: Callable[[torch.Tensor], torch.Tensor],
    residual: torch.Tensor | None = None,
    relu: bool = False,
) -> str:
    return refuses_maxima(x, x.shape[1]) or refuses_gates(x, (channel[:, :, None, None],), residual)


@has_kernel("axis", _refuses_gate)
def nested_gate(
    x: torch.Tensor,
    channel: torch.Tensor,
    spatial: Callable[[torch.Tensor], torch.Tensor],
    residual: torch.Tensor | None = None,
    relu: bool = False,
) -> torch.Tensor:
    """`y * spatial(pools of y)` with `y = x * channel`, in the dtype and layout of `x`. `(B, C, H, W)`, same out.

    Args:
        x: The map.
        channel: Gate of each channel, `(B, C)`.
        spatial: Makes a gate `(B, 1, H, W)` of the maximum and mean over the channels of y, `(B, 2, H, W)`. Where
            values tie, the gradient of the maximum goes to the first.
        residual: Added if given.
        relu: Whether a ReLU comes last.
    """
    channel = channel.to(x.dtype)
    if not eager.pays(x):
        y = x * channel[:, :, None, None]
        gate = spatial(torch.stack((max_first(y, 1), y.mean(1)), dim=1)).to(x.dtype)
        y = y * gate if residual is None else torch.addcmul(residual.to(x.dtype), y, gate)
        return y.relu() if relu else y
    if torch.is_grad_enabled() and (x.requires_grad or channel.requires_grad):
        x, maximum, mean = eager.GatedPools.apply(gated_pools, x, channel)[:3]
    else:
        maximum, mean, _ = eager.gated_pools(x, channel, with_index=False)
    gate = spatial(torch.stack((maximum, mean), dim=1)).to(x.dtype)
    return gate_by(x, (channel[:, :, None, None], gate), residual=residual, relu=relu)


def gated_pools(x: torch.Tensor, channel: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The map itself, and the maximum and mean of `x * channel` over the channels. `(B, C, H, W), (B, C)`."""
    y = x * channel[:, :, None, None]
    return x, max_first(y, 1), y.mean(1)


def _refuses_attention(
    x: torch.Tensor,
    channel: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    spatial: Callable[[torch.Tensor], torch.Tensor],
    residual: torch.Tensor | None = None,
    relu: bool = False,
) -> str:
    return _refuses_pools(x) or refuses_maxima(x, x.shape[1]) or refuses_gates(x, (x[:, :, :1, :1],), residual)


@has_kernel("axis", _refuses_attention)
def nested_attention(
    x: torch.Tensor,
    channel: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    spatial: Callable[[torch.Tensor], torch.Tensor],
    residual: torch.Tensor | None = None,
    relu: bool = False,
) -> torch.Tensor:
    """`nested_gate` whose first gate is made of the mean and maximum of each channel. `(B, C, H, W)`, same out.

    As one operation its gradient is one, too: no gradient of a map's size is stored between pools and gates.

    Args:
        x: The map.
        channel: Makes the gate of each channel, `(B, C)`, of the mean and the maximum of each, `(B, C)`.
        spatial: As for `nested_gate`.
        residual: Added if given.
        relu: Whether a ReLU comes last.
    """
    x, mean, maximum = map_pools(x)
    return nested_gate(x, channel(mean, maximum), spatial, residual, relu)
