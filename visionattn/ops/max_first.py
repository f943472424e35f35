"""Maxima with the gradient of the official codes."""

from typing import Any

import torch

from ._axis import spread_pools
from ._modes import compiling, transformed
from .eager._function import Function

__all__ = ["max_first"]


def max_first(x: torch.Tensor, dim: int) -> torch.Tensor:
    """The maximum over one dimension; where values tie, the gradient goes to the first of them.

    `torch.amax` spreads the gradient over ties, the official codes do not; ties are common after a ReLU and in bf16.
    Without a gradient to take, `amax` gives the same values without finding indices.
    """
    if not transformed() and not (x.requires_grad and torch.is_grad_enabled()):
        return x.amax(dim)
    if compiling():
        return _MaxFirst.apply(x, dim % x.ndim)[0]
    return x.max(dim).values


class _MaxFirst(Function):
    """For compilers, which fuse its gradient with others; that of `max` is scattered into a map of zeros."""

    @staticmethod
    def forward(x: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
        values, index = x.max(dim)
        return values, index

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
        x, ctx.dim = inputs
        ctx.shape = x.shape
        ctx.save_for_backward(output[1])
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, _: Any) -> tuple[torch.Tensor, None]:
        return spread_pools(None, ctx.shape, [], [((ctx.dim,), grad, ctx.saved_tensors[0])]), None
