"""Second moments of tokens, whose gradient takes one product where PyTorch needs two and a sum."""

from typing import Any

import torch

from visionattn.ops._autocast import wide

from ._function import EagerFunction, Tensors

__all__ = ["TokenMoments"]


class TokenMoments(EagerFunction):
    """Passes the tokens through, so that the gradients of the moments are accumulated into theirs."""

    results = 3

    @staticmethod
    def compute(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        values = x.to(wide(x))
        return x.view_as(x), values.mT @ values, values.sum(1, keepdim=True)

    @staticmethod
    def gradients(ctx: Any, grad: torch.Tensor, squares: torch.Tensor, sums: torch.Tensor) -> Tensors:
        (x,) = ctx.saved_tensors
        # Both factors of x x' are x: one product with the sum of the two halves serves them together.
        return (grad.baddbmm_(x, (squares + squares.mT).to(x.dtype)).add_(sums.to(x.dtype)),)
