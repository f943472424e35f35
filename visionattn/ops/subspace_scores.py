"""Affine map, ReLU, 3x3 maximum and grouped dot product in one, and the gate that uses them (ULSAM)."""

import torch
from torch.nn import functional as F

from ._axis import refuses_map
from ._dispatch import explain, has_kernel
from ._fused_scores import FusedScores, fused_moments
from ._modes import compiling, use_eager_kernel
from .eager import subspace_scores as eager

__all__ = [
    "channel_moments",
    "prefer_subspace_scores",
    "residual_gate",
    "residual_gate_formula",
    "scores_formula",
    "subspace_scores",
]


def prefer_subspace_scores(x: torch.Tensor) -> bool:
    """Whether `channel_moments` and `subspace_scores` are faster here than convolution, normalisation and pool."""
    return use_eager_kernel(x) or _fuses(x) or explain(channel_moments, x).backend == "triton"


def _fuses(x: torch.Tensor) -> bool:
    return compiling() and x.dtype in (torch.float32, torch.float64) and min(x.shape[2:]) > 2


@has_kernel("subspace", refuses_map)
def channel_moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and biased variance of each channel; kernels give float32. `(B, C, H, W) -> (C,), (C,)`.

    The variance is taken around the mean, so large means do no harm.
    """
    if use_eager_kernel(x):
        return eager.ChannelMoments.apply(_moments, x)[:2]
    return fused_moments(x) if _fuses(x) else _moments(x)


def _moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    return mean, var


def _refuses_scores(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, weight: torch.Tensor) -> str:
    return refuses_map(x)


@has_kernel("subspace", _refuses_scores)
def subspace_scores(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`sum_c weight * maxpool3x3(relu(scale * x + shift))` over the channels of each group.

    `(B, C, H, W) -> (B, G, H, W)`. Positions beyond the border do not count; where values tie, the gradient goes to the
    first in reading order.

    Args:
        x: The map.
        scale: Factor of each channel, `(C,)`.
        shift: Summand of each channel, `(C,)`.
        weight: Weights of the sums, `(G, C / G)`.
    """
    scale, shift, weight = (part.to(x.dtype) for part in (scale, shift, weight))
    if use_eager_kernel(x):
        return eager.SubspaceScores.apply(scores_formula, x, scale, shift, weight)
    if _fuses(x):
        return FusedScores.apply(x, scale, shift, weight)
    return scores_formula(x, scale, shift, weight)


def scores_formula(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`subspace_scores` by PyTorch's own pool and convolution."""
    activated = F.relu(torch.addcmul(shift.view(-1, 1, 1), x, scale.view(-1, 1, 1)))
    return F.conv2d(F.max_pool2d(activated, 3, stride=1, padding=1), weight[..., None, None], groups=len(weight))


def _refuses_gate(x: torch.Tensor, attention: torch.Tensor) -> str:
    return refuses_map(x)


@has_kernel("subspace", _refuses_gate)
def residual_gate(x: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
    """`x + x * attention`, each map for one group of channels. `(B, C, H, W), (B, G, H, W) -> (B, C, H, W)`.

    One rounding at the end: in half precision, `1 + attention` alone would often round to 1.
    """
    if use_eager_kernel(x):
        return eager.ResidualGate.apply(residual_gate_formula, x, attention)
    return residual_gate_formula(x, attention)


def residual_gate_formula(x: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
    """`residual_gate` as one operator."""
    groups = x.unflatten(1, (attention.shape[1], -1))
    return torch.addcmul(groups, groups, attention.unsqueeze(2)).flatten(1, 2)
