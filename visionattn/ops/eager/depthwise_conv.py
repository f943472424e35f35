"""Depthwise convolution of token maps, whose gradients are convolutions too."""

from typing import Any

import torch
from torch.nn import functional as F

from ._function import EagerFunction, Tensors
from ._opaque import opaque

__all__ = ["DepthwiseConv", "opaque_conv"]


class DepthwiseConv(EagerFunction):
    """`(B, H, W, C), (C, 1, kh, kw) -> (B, H, W, C)`; PyTorch's gradients take three times as long at 27 x 27 taps."""

    @staticmethod
    def compute(x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
        padding = (kernel.size(2) // 2, kernel.size(3) // 2)
        return F.conv2d(x.permute(0, 3, 1, 2), kernel, padding=padding, groups=len(kernel)).permute(0, 2, 3, 1)

    @staticmethod
    def gradients(ctx: Any, grad: torch.Tensor) -> Tensors:
        x, kernel = ctx.saved_tensors
        _, want_x, want_kernel = ctx.needs_input_grad
        grad = grad.contiguous()
        x_grad = DepthwiseConv.compute(grad, kernel.flip(2, 3)) if want_x else None
        return x_grad, _kernel_grad(grad, x, kernel) if want_kernel else None


def _kernel_grad(grad: torch.Tensor, x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """The map convolved with its gradient, each image of the batch being further channels."""
    images = x.permute(1, 2, 0, 3).flatten(2).unsqueeze(0)
    kernels = grad.permute(0, 3, 1, 2).flatten(0, 1).unsqueeze(1)
    padding = (kernel.size(2) // 2, kernel.size(3) // 2)
    kernel_grad = F.conv2d(images.permute(0, 3, 1, 2), kernels, padding=padding, groups=len(kernels))
    return kernel_grad.view(len(x), *kernel.shape).sum(0)


def _compute(x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    return DepthwiseConv.compute(x, kernel).contiguous()


def _tokens_like(x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    return x.new_empty(x.shape)


def _gradients(grad: torch.Tensor, x: torch.Tensor, kernel: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    grad = grad.contiguous()
    return _compute(grad, kernel.flip(2, 3)), _kernel_grad(grad, x, kernel)


# For contiguous maps and kernels.
opaque_conv = opaque("depthwise_conv", _compute, _tokens_like, _gradients)
