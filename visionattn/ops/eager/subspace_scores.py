"""Moments, scores and gate of subspaces without max_pool2d, which dominates the cost of such a block.

Here the maxima are taken along the rows, then along the columns, a few images at a time so that what lies between stays
in the cache, and the backward pass computes it again instead of keeping it.
"""

from collections.abc import Iterator
from typing import Any

import torch

from ._function import EagerFunction, Tensors

__all__ = ["ChannelMoments", "SubspaceScores"]

# Numbers in what is worked on at a time: 2 MB in float32.
_CHUNK = 2**19


class ChannelMoments(EagerFunction):
    """Mean and variance of each channel; returns the mean again, to be saved."""

    results = 2

    @staticmethod
    def compute(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        mean = x.mean((0, 2, 3))
        squares: Any = sum((part - _column(mean)).square_().sum((0, 2, 3)) for part in _chunks(x))
        return mean, squares / (x.numel() // x.shape[1]), mean.clone()

    @staticmethod
    def gradients(ctx: Any, grad_mean: torch.Tensor, grad_var: torch.Tensor) -> Tensors:
        x, mean = ctx.saved_tensors
        count = x.numel() // x.shape[1]
        slope = grad_var * (2 / count)
        return (_affine(x, slope, grad_mean / count - slope * mean),)


class SubspaceScores(EagerFunction):
    """`sum_c weight * maxpool3x3(relu(scale * x + shift))` over the channels of each group."""

    @staticmethod
    def compute(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return torch.cat(
            [
                _grouped(_pooled(part, scale, shift)[-1], len(weight)).mul_(weight[..., None, None]).sum(2)
                for part in _chunks(x)
            ]
        )

    @staticmethod
    def gradients(ctx: Any, grad: torch.Tensor) -> Tensors:
        x, scale, shift, weight = ctx.saved_tensors
        out = torch.empty_like(x)
        factor = _column(scale * weight.flatten())
        total = torch.zeros_like(scale)
        moment = torch.zeros_like(scale)
        for part, part_grad, part_out in zip(_chunks(x), _chunks(grad, x), _chunks(out), strict=True):
            activated, rows, pooled = _pooled(part, scale, shift)
            # The weights wait until the end: they are constant within a channel. Masks are numbers: on the CPU a
            # product with one is ten times faster than torch.where.
            routed = torch.gt(pooled, 0, out=torch.empty_like(pooled))
            _grouped(routed, len(weight)).mul_(part_grad.unsqueeze(2))
            routed = _max3_backward(_max3_backward(routed, rows, 2), activated, 3)
            total += routed.sum((0, 2, 3))
            torch.mul(routed, factor, out=part_out)
            moment += routed.mul_(part).sum((0, 2, 3))
        # What was routed to a cell is the gradient of the maximum that it won, so sums over the maxima are sums here.
        weight_grad = (scale * moment + shift * total).view_as(weight)
        return out, moment * weight.flatten(), total * weight.flatten(), weight_grad


def _chunks(x: torch.Tensor, like: torch.Tensor | None = None) -> Iterator[torch.Tensor]:
    """Chunks of images of `x`, of the same length as for `like`, if given."""
    like = x if like is None else like
    return iter(x.split(max(1, _CHUNK // max(1, like.shape[1:].numel()))))


def _column(x: torch.Tensor) -> torch.Tensor:
    return x.view(-1, 1, 1)


def _grouped(x: torch.Tensor, groups: int) -> torch.Tensor:
    return x.unflatten(1, (groups, -1))


def _affine(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    return torch.mul(x, _column(scale)).add_(_column(shift))  # addcmul is slow with repeated operands


def _pooled(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The activations, their maxima along the rows, and those along the columns of these."""
    # Rows first: the first of tied values is then the first in reading order.
    activated = _affine(x, scale, shift).relu_()
    rows = _max3(activated, 3)
    return activated, rows, _max3(rows, 2)


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
