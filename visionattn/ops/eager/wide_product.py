"""The product of half precision tensors in float32, which saves them as they are for the backward pass."""

from typing import Any

import torch

from visionattn.ops._autocast import wide

from ._function import EagerFunction, Tensors

__all__ = ["WideProduct"]


class WideProduct(EagerFunction):
    """`a' b` of `(..., N, C)` and `(..., N, D)`."""

    @staticmethod
    def compute(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a.to(wide(a)).mT @ b.to(wide(b))

    @staticmethod
    def gradients(ctx: Any, grad: torch.Tensor) -> Tensors:
        a, b = ctx.saved_tensors
        grad = grad.to(a.dtype)
        return b @ grad.mT, a @ grad
