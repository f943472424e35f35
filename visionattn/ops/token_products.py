"""Products of tokens that are summed over an image, and products of tokens with matrices of their image."""

from typing import Any

import torch

from ._autocast import wide
from ._dispatch import has_kernel
from ._modes import compiling
from .eager._function import Function

__all__ = ["mixed_tokens", "token_products"]

# The most channels for which a row of an image's matrix is read as often as kernels do.
_WIDEST = 1024


def _refuses(x: torch.Tensor, y: torch.Tensor | None = None, *matrices: torch.Tensor) -> str:
    tokens = (x,) if y is None or matrices else (x, y)
    if any(t.stride(2) != 1 for t in tokens):
        return "the channels of a token do not lie together"
    return f"there are more than {_WIDEST} channels" if x.size(2) > _WIDEST else ""


@has_kernel("token_products", _refuses)
def token_products(x: torch.Tensor, y: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """The sums over the tokens of x y' and of y. `(B, N, C), (B, N, C) -> (B, C, C), (B, 1, C)`, at least float32.

    Args:
        x: The tokens.
        y: Others of the same dtype; x itself if None, and then the torch code multiplies in float32.
    """
    if y is None:
        x = y = x.to(wide(x))
        products = _Squares.apply(x) if compiling() else x.mT @ x
    else:
        products = (x.mT @ y).to(wide(x))
    return products, y.sum(1, keepdim=True).to(wide(x))


class _Squares(Function):
    """`x' x`. Compilers would take two products for its gradient; one with the sum of two halves serves both."""

    @staticmethod
    def forward(x: torch.Tensor) -> torch.Tensor:
        return x.mT @ x

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return x @ (grad + grad.mT)


@has_kernel("token_products", _refuses)
def mixed_tokens(
    x: torch.Tensor, a: torch.Tensor, y: torch.Tensor, b: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """`x a + y b + bias`, in the dtype of x. `(B, N, C), (B, C, C), (B, N, C), (B, C, C), (B, 1, C) -> (B, N, C)`.

    For gradients: it has none itself.
    """
    a, b, bias = (t.to(x.dtype) for t in (a, b, bias))
    return torch.baddbmm(bias, y, b).baddbmm_(x, a)
