"""A depthwise convolution of maps `(B, H * W, C)` inside kernels, and the gradient of its weight."""

import torch
import triton
import triton.language as tl

from ._register import power_of_2, register, wrap_triton

__all__ = ["convolved", "depthwise_weight_gradients"]


@triton.jit
def convolved(
    x,
    weight,
    first,
    rows,
    valid,
    columns,
    within,
    x_token,
    tokens,
    width,
    SIDE: tl.constexpr,
    BACKWARD: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """A tile `(BLOCK_N, BLOCK_C)` of the convolution of one image, or of its transpose.

    Args:
        x: The image's first number.
        weight: `(C, 1, SIDE, SIDE)`.
        first: First token of the tile.
        rows: Its tokens, counted from there.
        columns: Its channels.
    """
    row, column = (first + rows) // width, (first + rows) % width
    result = tl.zeros([BLOCK_N, BLOCK_C], tl.float32)
    for i in range(SIDE):
        for j in tl.static_range(SIDE):
            if BACKWARD:
                down, right = SIDE // 2 - i, SIDE // 2 - j
            else:
                down, right = i - SIDE // 2, j - SIDE // 2
            inside = valid & (row + down >= 0) & ((row + down) * width < tokens)
            inside &= (column + right >= 0) & (column + right < width)
            at = x + (first + down * width + right).to(tl.int64) * x_token
            at = at + rows[:, None] * x_token + columns[None, :]
            tap = tl.load(weight + columns * (SIDE * SIDE) + (i * SIDE + j), mask=within, other=0.0)
            value = tl.load(at, mask=inside[:, None] & within[None, :], other=0.0)
            result += value.to(tl.float32) * tap.to(tl.float32)[None, :]
    return result


@triton.jit
def _weight_kernel(
    x,
    grad,
    out,
    tokens,
    width,
    x_image,
    x_token,
    grad_image,
    grad_token,
    split_tokens,
    splits,
    C: tl.constexpr,
    SIDE: tl.constexpr,
    TAPS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Sums over a part of an image's tokens. The tap after the last stands for the bias."""
    chunks = tl.cdiv(C, BLOCK_C)
    part = tl.program_id(0) // chunks
    columns = tl.program_id(0) % chunks * BLOCK_C + tl.arange(0, BLOCK_C)
    image = (part // splits).to(tl.int64)
    start = part % splits * split_tokens
    end = tl.minimum(start + split_tokens, tokens)
    taps = tl.arange(0, TAPS)
    down, right = (taps // SIDE - SIDE // 2)[None, :], (taps % SIDE - SIDE // 2)[None, :]
    within = (columns < C)[None, :]
    rows = tl.arange(0, BLOCK_N)[:, None]
    x += image * x_image + start.to(tl.int64) * x_token
    grad += image * grad_image + start.to(tl.int64) * grad_token
    total = tl.zeros([BLOCK_N, TAPS, BLOCK_C], tl.float32)
    for first in range(start, end, BLOCK_N):
        valid = first + rows < end
        row, column = (first + rows) // width + down, (first + rows) % width + right
        inside = valid & (taps < SIDE * SIDE)[None, :] & (row >= 0) & (row * width < tokens)
        inside &= (column >= 0) & (column < width)
        at = x + ((rows + down * width + right) * x_token)[:, :, None] + columns[None, None, :]
        value = tl.load(at, mask=inside[:, :, None] & within[None], other=0.0).to(tl.float32)
        value = tl.where((taps == SIDE * SIDE)[None, :, None], 1.0, value)
        some_grad = tl.load(grad + rows * grad_token + columns[None, :], mask=valid & within, other=0.0)
        total += value * some_grad.to(tl.float32)[:, None, :]
        x += BLOCK_N * x_token
        grad += BLOCK_N * grad_token
    at = out + (part.to(tl.int64) * TAPS + taps[:, None]) * C + columns[None, :]
    tl.store(at, tl.sum(total, 0), mask=within)


def _fake(x: torch.Tensor, grad: torch.Tensor, width: int, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    channels = x.size(2)
    weight = x.new_empty(channels, 1, side, side, dtype=torch.float32)
    return weight, x.new_empty(channels, dtype=torch.float32)


@register(_fake)
def depthwise_weight_gradients(
    x: torch.Tensor, grad: torch.Tensor, width: int, side: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Float32 gradients of weight `(C, 1, side, side)` and bias `(C,)`, from x and that of the result `(B, N, C)`."""
    images, tokens, channels = x.shape
    taps = power_of_2(side * side + 1, 128)
    block = power_of_2(channels, 64)
    rows = max(1, 128 // taps)
    splits = max(1, min(-(-1024 // images), tokens // 128))
    split_tokens = -(-tokens // splits)
    sums = torch.empty(images, splits, taps, channels, dtype=torch.float32, device=x.device)
    wrap_triton(_weight_kernel)[(images * splits * triton.cdiv(channels, block),)](
        x,
        grad,
        sums,
        tokens,
        width,
        x.stride(0),
        x.stride(1),
        grad.stride(0),
        grad.stride(1),
        split_tokens,
        splits,
        C=channels,
        SIDE=side,
        TAPS=taps,
        BLOCK_N=rows,
        BLOCK_C=block,
        num_warps=4,
    )
    sums = sums.sum((0, 1))
    weight = sums[: side * side].t().contiguous().view(channels, 1, side, side)
    return weight, sums[side * side].clone()
