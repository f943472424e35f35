"""Moments, scores and gate of subspaces without max_pool2d, which dominates the cost of such a block.

Here the maxima are taken along the rows, then along the columns, a few images or subspaces at a time so that what lies
between stays in the cache, and the backward pass computes it again instead of keeping it.
"""

from typing import Any

import torch

from visionattn.ops.layout import as_rows

from ._chunks import chunks
from ._function import EagerFunction, Tensors
from ._opaque import opaque

__all__ = ["ChannelMoments", "SubspaceScores", "opaque_scores"]


class ChannelMoments(EagerFunction):
    """Mean and variance of each channel; returns the mean again, to be saved."""

    results = 2

    @staticmethod
    def compute(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        mean = x.mean((0, 2, 3))
        rows, axis = as_rows(x)
        squares = torch.zeros_like(mean)
        for at in chunks(rows):
            channels = at[1] if axis == 1 else slice(None)
            parts = (rows[at] - mean[channels].unsqueeze(2 - axis)).square_()
            squares[channels] += parts.sum((0, 3 - axis))
        return mean, squares / (x.numel() // x.shape[1]), mean.clone()

    @staticmethod
    def gradients(ctx: Any, grad_mean: torch.Tensor, grad_var: torch.Tensor) -> Tensors:
        x, mean = ctx.saved_tensors
        count = x.numel() // x.shape[1]
        slope = grad_var * (2 / count)
        slope, shift = (part.view(-1, 1, 1) for part in (slope, grad_mean / count - slope * mean))
        return (torch.addcmul(shift, x, slope),)


class SubspaceScores(EagerFunction):
    """`sum_c weight * maxpool3x3(relu(scale * x + shift))` over the channels of each group."""

    @staticmethod
    def compute(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        groups, scale, shift = _grouped(x, len(weight)), _column(scale, weight), _column(shift, weight)
        out = _scores_like(x, scale, shift, weight)
        for at in chunks(groups):
            pooled = _pooled(groups[at], scale[at[1]], shift[at[1]])[-1]
            torch.sum(pooled.mul_(weight[at[1], :, None, None]), 2, out=out[at])
        return out

    @staticmethod
    def gradients(ctx: Any, grad: torch.Tensor) -> Tensors:
        return _gradients(grad, *ctx.saved_tensors)


def _gradients(
    grad: torch.Tensor, x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of the map, the factors, the summands and the weights."""
    out = torch.empty_like(x)
    groups, target = _grouped(x, len(weight)), _grouped(out, len(weight))
    factor = _column(scale * weight.flatten(), weight)
    scales, shifts = _column(scale, weight), _column(shift, weight)
    total, moment = torch.zeros_like(weight), torch.zeros_like(weight)
    for at in chunks(groups):
        part = groups[at]
        activated, rows, pooled = _pooled(part, scales[at[1]], shifts[at[1]])
        # The weights wait until the end: they are constant within a channel. Masks are numbers: on the CPU a product
        # with one is ten times faster than torch.where.
        routed = torch.gt(pooled, 0, out=torch.empty_like(pooled)).mul_(grad[at].unsqueeze(2))
        routed = _max3_backward(_max3_backward(routed, rows, 3), activated, 4)
        total[at[1]] += routed.sum((0, 3, 4))
        torch.mul(routed, factor[at[1]], out=target[at])
        moment[at[1]] += routed.mul_(part).sum((0, 3, 4))
    # What was routed to a cell is the gradient of the maximum that it won, so sums over the maxima are sums here.
    weight_grad = scale.view_as(weight) * moment + shift.view_as(weight) * total
    return out, (moment * weight).flatten(), (total * weight).flatten(), weight_grad


def _scores_like(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x[:, : len(weight)])


# No compiler makes a loop of the pool that is as fast.
opaque_scores = opaque("subspace_scores", SubspaceScores.compute, _scores_like, _gradients)


def _column(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Values of the channels as they are multiplied onto groups: `(G, C / G, 1, 1)`."""
    return values.view(*weight.shape, 1, 1)


def _grouped(x: torch.Tensor, groups: int) -> torch.Tensor:
    return x.unflatten(1, (groups, -1))


def _pooled(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The activations, their maxima along the rows, and those along the columns of these."""
    # Rows first: the first of tied values is then the first in reading order.
    activated = torch.addcmul(shift, x, scale).relu_()
    rows = _max3(activated, 4)
    return activated, rows, _max3(rows, 3)


def _pairs(x: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Every value but the last, and its successor."""
    n = x.shape[dim] - 1
    return x.narrow(dim, 0, n), x.narrow(dim, 1, n)


def _max3(x: torch.Tensor, dim: int) -> torch.Tensor:
    n = x.shape[dim]
    if n == 1:
        return x
    pair = torch.maximum(*_pairs(x, dim))
    out = torch.empty_like(x)
    if n > 2:
        torch.maximum(*_pairs(pair, dim), out=out.narrow(dim, 1, n - 2))
    out.select(dim, 0).copy_(pair.select(dim, 0))
    out.select(dim, -1).copy_(pair.select(dim, -1))
    return out


def _max3_backward(grad: torch.Tensor, x: torch.Tensor, dim: int) -> torch.Tensor:
    n = x.shape[dim]
    if n == 1:
        return grad
    # A maximum of three is one of two overlapping pairs: undo that choice, then the one inside each pair.
    pair = torch.maximum(*_pairs(x, dim))
    pair_grad = torch.empty_like(pair)
    pair_grad.narrow(dim, 0, n - 2).copy_(grad.narrow(dim, 1, n - 2))
    pair_grad.select(dim, -1).zero_()
    if n > 2:
        _move_to_larger(pair_grad, pair, dim)
    pair_grad.select(dim, 0).add_(grad.select(dim, 0))
    pair_grad.select(dim, -1).add_(grad.select(dim, -1))
    out = torch.empty_like(x)
    out.narrow(dim, 0, n - 1).copy_(pair_grad)
    out.select(dim, -1).zero_()
    return _move_to_larger(out, x, dim)


def _move_to_larger(grad: torch.Tensor, x: torch.Tensor, dim: int) -> torch.Tensor:
    """Moves the gradient of each pair's maximum, stored at its first value, to the larger; a tie stays at the first."""
    here, there = _pairs(x, dim)
    first, second = _pairs(grad, dim)
    moved = torch.lt(here, there, out=torch.empty_like(first)).mul_(first)
    first.sub_(moved)
    second.add_(moved)
    return grad
