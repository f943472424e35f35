"""Gates a map by scores of channels combined with scores of positions."""

from collections.abc import Callable

import torch

from ._axis import join_gates, refuses_gates, refuses_map
from ._dispatch import has_kernel
from ._modes import needs_formula, use_eager_kernel
from .eager.cross_gate import CrossGate
from .eager.nested_gate import pays

__all__ = ["cross_gate", "score_gate"]


def _refuses(x: torch.Tensor, channel: torch.Tensor, spatial: torch.Tensor, mode: str) -> str:
    return refuses_gates(x, (channel, spatial))


@has_kernel("axis", _refuses)
def cross_gate(x: torch.Tensor, channel: torch.Tensor, spatial: torch.Tensor, mode: str) -> torch.Tensor:
    """`x * (1 + sigmoid(channel * spatial))`, or with their sum, in the dtype and layout of `x`.

    Args:
        x: Map, `(B, C, H, W)`.
        channel: `(B, C, 1, 1)`.
        spatial: `(B, 1, H, W)`.
        mode: `product` or `sum`.

    Raises:
        ValueError: If `mode` is unknown.
    """
    if mode not in ("product", "sum"):
        raise ValueError(f"mode must be product or sum, got {mode!r}")
    channel, spatial = channel.to(x.dtype), spatial.to(x.dtype)
    if needs_formula() or (use_eager_kernel(x) and not pays(x)):
        return _formula(x, channel, spatial, mode)
    return CrossGate.apply(_formula, x, channel, spatial, mode)[0]


def _formula(x: torch.Tensor, channel: torch.Tensor, spatial: torch.Tensor, mode: str) -> torch.Tensor:
    return x * (1 + join_gates((channel, spatial), mode).sigmoid())


def _refuses_scores(
    x: torch.Tensor,
    channel: Callable[[torch.Tensor], torch.Tensor],
    spatial: Callable[[torch.Tensor], torch.Tensor],
    mode: str,
) -> str:
    return refuses_map(x) or ("" if mode in ("product", "sum") else "the scores cannot be joined so")


@has_kernel("axis", _refuses_scores)
def score_gate(
    x: torch.Tensor,
    channel: Callable[[torch.Tensor], torch.Tensor],
    spatial: Callable[[torch.Tensor], torch.Tensor],
    mode: str,
) -> torch.Tensor:
    """`cross_gate` by scores that are made of the map. `(B, C, H, W)`, same out, in its dtype and layout.

    As one operation its gradient is one, too: those of the gate, of the mean and of `spatial` are added in one pass.

    Args:
        x: The map.
        channel: Makes the scores of the channels, `(B, C)`, of their means, `(B, C)`.
        spatial: Makes the scores of the positions, `(B, 1, H, W)`, of the map.
        mode: `product` or `sum`.

    Raises:
        ValueError: If `mode` is unknown.
    """
    return cross_gate(x, channel(x.mean((2, 3)))[:, :, None, None], spatial(x), mode)
