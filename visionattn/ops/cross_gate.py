"""Gates a map by scores of channels combined with scores of positions."""

import torch

from ._axis import join_gates, refuses_gates
from ._dispatch import has_kernel
from ._modes import needs_formula
from .eager.cross_gate import CrossGate

__all__ = ["cross_gate"]


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
    if needs_formula():
        return _formula(x, channel, spatial, mode)
    return CrossGate.apply(_formula, x, channel, spatial, mode)[0]


def _formula(x: torch.Tensor, channel: torch.Tensor, spatial: torch.Tensor, mode: str) -> torch.Tensor:
    return x * (1 + join_gates((channel, spatial), mode).sigmoid())
