"""The scores of subspaces for compilers, which make few loops of these formulas; they would not fuse PyTorch's pool."""

from typing import Any

import torch
from torch.nn import functional as F

from .eager._function import Function, Tensors

__all__ = ["FusedScores", "fused_moments"]


class FusedScores(Function):
    """As `visionattn.ops.subspace_scores`, for maps of at least 3 x 3."""

    @staticmethod
    def forward(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        pooled = _pooled(x.unflatten(1, weight.shape), scale, shift)[-1]
        return (pooled * weight[..., None, None]).sum(2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Tensors:
        x, scale, shift, weight = ctx.saved_tensors
        groups = x.unflatten(1, weight.shape)
        activated, rows, pooled = _pooled(groups, scale, shift)
        routed = torch.where(pooled > 0, grad.unsqueeze(2), 0)
        routed = _max3_gradient(_max3_gradient(routed, rows, 3), activated, 4)
        # The weights are constant within a channel.
        total, moment = routed.sum((0, 3, 4)), (routed * groups).sum((0, 3, 4))
        factor = scale.view_as(weight) * weight
        weight_grad = scale.view_as(weight) * moment + shift.view_as(weight) * total
        x_grad = (routed * factor[..., None, None]).flatten(1, 2)
        return x_grad, (moment * weight).flatten(), (total * weight).flatten(), weight_grad


def fused_moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As `visionattn.ops.channel_moments`, by two sums instead of a running update at each value."""
    mean = x.mean((0, 2, 3))
    # What the variance is taken around has no influence on it, to first order.
    return mean, (x - mean.detach()[:, None, None]).square().mean((0, 2, 3))


def _pooled(groups: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The activations, their maxima along the rows, and those along the columns of these. `(B, G, C / G, H, W)`."""
    scale, shift = (part.view(*groups.shape[1:3], 1, 1) for part in (scale, shift))
    activated = F.relu(groups * scale + shift)
    rows = _max3(activated, 4)
    return activated, rows, _max3(rows, 3)


def _max3(x: torch.Tensor, dim: int) -> torch.Tensor:
    # Beyond the border is zero: no activation is less.
    return torch.maximum(torch.maximum(_moved(x, dim, -1), x), _moved(x, dim, 1))


def _max3_gradient(grad: torch.Tensor, x: torch.Tensor, dim: int) -> torch.Tensor:
    """Each value gets the gradients of the maxima, one before, its own and one after, in which it is the first."""
    ahead, behind = (x >= _moved(x, dim, 1, -1.0)), (x > _moved(x, dim, -1, -1.0))
    first = torch.where(ahead & (x >= _moved(x, dim, 2, -1.0)), _moved(grad, dim, 1), 0)
    last = torch.where(behind & (x > _moved(x, dim, -2, -1.0)), _moved(grad, dim, -1), 0)
    return first + torch.where(ahead & behind, grad, 0) + last


def _moved(x: torch.Tensor, dim: int, by: int, fill: float = 0.0) -> torch.Tensor:
    """At each place the value that lies `by` places further along a dimension, 3 or 4 of 5."""
    return F.pad(x, (-by, by) if dim == 4 else (0, 0, -by, by), value=fill)
