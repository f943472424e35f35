"""Kernels of tokens' products: each reads its maps once, and half precision is summed in float32."""

from typing import Any

import torch
import triton

from ._focus import precision
from ._register import power_of_2, register, wrap_triton
from ._token_kernels import mixing_kernel, products_kernel

__all__ = ["mixed_tokens", "token_products"]


def token_products(x: torch.Tensor, y: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """As `visionattn.ops.token_products.token_products`."""
    products, sums = sums_of_products(x, y)
    return products, sums


def mixed_tokens(
    x: torch.Tensor, a: torch.Tensor, y: torch.Tensor, b: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """As `visionattn.ops.token_products.mixed_tokens`."""
    a, b, bias = (t.to(x.dtype).contiguous() for t in (a, b, bias))
    mixed: torch.Tensor = mixture_of_tokens(x, a, y, b, bias)
    return mixed


def _fake_sums(x: torch.Tensor, y: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    images, _, channels = x.shape
    products = x.new_empty(images, channels, channels, dtype=torch.float32)
    return products, x.new_empty(images, 1, channels, dtype=torch.float32)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, products: torch.Tensor, sums: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    x, y = ctx.saved_tensors
    products, sums = products.to(x.dtype), sums.to(x.dtype)
    if y is None:
        return torch.baddbmm(sums, x, products + products.mT), None
    return y @ products.mT, torch.baddbmm(sums, x, products)


@register(_fake_sums, _setup, _backward)
def sums_of_products(x: torch.Tensor, y: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """The sums over the tokens of x y' and of y; y is x if None."""
    images, tokens, channels = x.shape
    y = x if y is None else y
    block_c = power_of_2(channels, 128 if x.dtype.itemsize == 2 else 64)
    block_c, block = max(16, block_c), 64 if x.dtype.itemsize == 2 else 32
    blocks = (-(-channels // block_c)) ** 2
    splits = max(1, min(-(-512 // (images * blocks)), tokens // 256))
    split_tokens = -(-tokens // (splits * block)) * block
    splits = -(-tokens // split_tokens)
    products = torch.empty(images, splits, channels, channels, dtype=torch.float32, device=x.device)
    sums = torch.empty(images, splits, channels, dtype=torch.float32, device=x.device)
    wrap_triton(products_kernel)[(images * splits * blocks,)](
        x,
        y,
        products,
        sums,
        tokens,
        x.stride(0),
        x.stride(1),
        y.stride(0),
        y.stride(1),
        split_tokens,
        splits,
        C=channels,
        PRECISION=precision(x.dtype),
        BLOCK_N=block,
        BLOCK_C=block_c,
        num_warps=8 if block_c == 128 else 4,
    )
    return products.sum(1), sums.sum(1, keepdim=True)


def _fake_mixture(
    x: torch.Tensor, a: torch.Tensor, y: torch.Tensor, b: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    return x.new_empty(x.shape)


@register(_fake_mixture)
def mixture_of_tokens(
    x: torch.Tensor, a: torch.Tensor, y: torch.Tensor, b: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """`x a + y b + bias`; the matrices are dense."""
    images, tokens, channels = x.shape
    half = x.dtype.itemsize == 2
    block_c, block = max(16, power_of_2(channels, 128 if half else 64)), 64
    out = x.new_empty(x.shape)
    programs = images * triton.cdiv(tokens, block) * triton.cdiv(channels, block_c)
    wrap_triton(mixing_kernel)[(programs,)](
        x,
        a,
        y,
        b,
        bias,
        out,
        tokens,
        x.stride(0),
        x.stride(1),
        y.stride(0),
        y.stride(1),
        C=channels,
        PRECISION=precision(x.dtype),
        BLOCK_N=block,
        BLOCK_C=block_c,
        BLOCK_K=32,
        num_warps=4,
    )
    return out
