"""Affine map, ReLU, 3x3 maximum and grouped dot product in one, and the gate that uses them (ULSAM)."""

from collections.abc import Callable

import torch
from torch.nn import functional as F

from ._axis import refuses_map
from ._dispatch import explain, has_kernel
from ._modes import calls_eager_kernel, compiling, use_eager_kernel
from .eager import subspace_scores as eager
from .eager.axis_gate import AxisGate
from .eager.nested_gate import pays
from .layout import memory_format

__all__ = [
    "channel_moments",
    "prefer_subspace_scores",
    "residual_gate",
    "scores_formula",
    "subspace_attention",
    "subspace_scores",
]


def prefer_subspace_scores(x: torch.Tensor) -> bool:
    """Whether `channel_moments` and `subspace_scores` are faster here than convolution, normalisation and pool."""
    return use_eager_kernel(x) or calls_eager_kernel(x) or explain(channel_moments, x).backend == "triton"


@has_kernel("subspace", refuses_map)
def channel_moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and biased variance of each channel; kernels give float32. `(B, C, H, W) -> (C,), (C,)`.

    The variance is taken around the mean, so large means do no harm.
    """
    if use_eager_kernel(x):
        return eager.ChannelMoments.apply(_moments, x)[:2]
    return _two_sums(x) if calls_eager_kernel(x) else _moments(x)


def _moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    return mean, var


def _two_sums(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """For compilers: two sums instead of a running update at each value."""
    mean = x.mean((0, 2, 3))
    # What the variance is taken around has no influence on it, to first order.
    return mean, (x - mean.detach()[:, None, None]).square().mean((0, 2, 3))


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
    if calls_eager_kernel(x):
        return eager.opaque_scores(x, scale, shift, weight)
    return scores_formula(x, scale, shift, weight)


def scores_formula(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`subspace_scores` by PyTorch's own pool and convolution."""
    activated = F.relu(torch.addcmul(shift.view(-1, 1, 1), x, scale.view(-1, 1, 1)))
    return F.conv2d(F.max_pool2d(activated, 3, stride=1, padding=1), weight[..., None, None], groups=len(weight))


def _refuses_gate(
    x: torch.Tensor, attention: torch.Tensor, residual: torch.Tensor | None = None, relu: bool = False
) -> str:
    if residual is not None and residual.shape != x.shape:
        return "the residual must have the map's shape"
    return refuses_map(x)


@has_kernel("subspace", _refuses_gate)
def residual_gate(
    x: torch.Tensor, attention: torch.Tensor, residual: torch.Tensor | None = None, relu: bool = False
) -> torch.Tensor:
    """`x + x * attention [+ residual]`, then ReLU, each attention map for one group of channels.

    `(B, C, H, W), (B, G, H, W) -> (B, C, H, W)`. One rounding at the end of the gate: in half precision, `1 +
    attention` alone would often round to 1.

    Args:
        x: The map.
        attention: Of each group.
        residual: Added if given.
        relu: Whether a ReLU comes last.
    """
    residual = None if residual is None else residual.to(x.dtype)
    if pays(x):
        layout = memory_format(x)
        gate = attention.to(x.dtype).contiguous(memory_format=layout)
        dense = x.contiguous(memory_format=layout)
        return AxisGate.apply(dense, residual, "product", True, relu, attention.shape[1], gate)
    groups = x.unflatten(1, (attention.shape[1], -1))
    if compiling():
        # In the map's own shape: a compiler would lay the groups out as NCHW.
        gate = attention.unsqueeze(2).expand(groups.shape).flatten(1, 2)
        y = torch.addcmul(x, x, gate)
    else:
        y = torch.addcmul(groups, groups, attention.unsqueeze(2)).flatten(1, 2)
    y = y if residual is None else y + residual
    return y.relu() if relu else y


def _refuses_attention(
    x: torch.Tensor,
    numbers: Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
    attention: Callable[[torch.Tensor], torch.Tensor],
    num_groups: int,
    moments: bool,
    residual: torch.Tensor | None = None,
    relu: bool = False,
) -> str:
    return _refuses_gate(x, x, residual)


@has_kernel("subspace", _refuses_attention)
def subspace_attention(
    x: torch.Tensor,
    numbers: Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
    attention: Callable[[torch.Tensor], torch.Tensor],
    num_groups: int,
    moments: bool,
    residual: torch.Tensor | None = None,
    relu: bool = False,
) -> torch.Tensor:
    """`residual_gate` by attention made of `subspace_scores`, of the map itself. `(B, C, H, W)`, same out.

    As one operation its gradient is one, too: no gradient of a map's size is stored between scores and gate.

    Args:
        x: The map.
        numbers: Makes scale, shift and weight of `subspace_scores`, of mean and variance of each channel if `moments`.
        attention: Makes the attention of each group of the scores.
        num_groups: Number of groups.
        moments: Whether `numbers` needs mean and variance.
        residual: Added if given.
        relu: Whether a ReLU comes last.
    """
    made = numbers(*channel_moments(x)) if moments else numbers()
    return residual_gate(x, attention(subspace_scores(x, *made)), residual, relu)
