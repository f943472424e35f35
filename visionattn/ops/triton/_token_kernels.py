"""Kernels of tokens' products: sums over an image's tokens, and mixtures of tokens."""

import triton
import triton.language as tl

from ._focus import dot

__all__ = ["mixing_kernel", "products_kernel"]


@triton.jit
def products_kernel(
    x,
    y,
    products,
    sums,
    tokens,
    x_image,
    x_token,
    y_image,
    y_token,
    split_tokens,
    splits,
    C: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Sums of x y' and of y over a part of an image's tokens, for a block of channels of x and one of y."""
    chunks: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    part = tl.program_id(0) // (chunks * chunks)
    down = tl.program_id(0) // chunks % chunks * BLOCK_C + tl.arange(0, BLOCK_C)
    right = tl.program_id(0) % chunks * BLOCK_C + tl.arange(0, BLOCK_C)
    image = (part // splits).to(tl.int64)
    start = part % splits * split_tokens
    rows = tl.arange(0, BLOCK_N)[:, None]
    x += image * x_image + start.to(tl.int64) * x_token
    y += image * y_image + start.to(tl.int64) * y_token
    product = tl.zeros([BLOCK_C, BLOCK_C], tl.float32)
    total = tl.zeros([BLOCK_C], tl.float32)
    for first in range(start, tl.minimum(start + split_tokens, tokens), BLOCK_N):
        valid = first + rows < tokens
        some_x = tl.load(x + rows * x_token + down[None, :], mask=valid & (down < C)[None, :], other=0.0)
        some_y = tl.load(y + rows * y_token + right[None, :], mask=valid & (right < C)[None, :], other=0.0)
        product += dot(tl.trans(some_x), some_y, PRECISION)
        total += tl.sum(some_y.to(tl.float32), 0)
        x += BLOCK_N * x_token
        y += BLOCK_N * y_token
    at = products + (part.to(tl.int64) * C + down[:, None]) * C + right[None, :]
    tl.store(at, product, mask=(down < C)[:, None] & (right < C)[None, :])
    if tl.program_id(0) // chunks % chunks == 0:
        tl.store(sums + part.to(tl.int64) * C + right, total, mask=right < C)


@triton.jit
def mixing_kernel(
    x,
    a,
    y,
    b,
    bias,
    out,
    tokens,
    x_image,
    x_token,
    y_image,
    y_token,
    C: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A tile of `x a + y b + bias`."""
    chunks: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    tiles = tl.cdiv(tokens, BLOCK_N)
    tile = tl.program_id(0) // chunks
    image = (tile // tiles).to(tl.int64)
    rows = (tile % tiles * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)[:, None]
    columns = tl.program_id(0) % chunks * BLOCK_C + tl.arange(0, BLOCK_C)
    within = (columns < C)[None, :]
    x += image * x_image + rows * x_token
    y += image * y_image + rows * y_token
    a += image * C * C + columns[None, :]
    b += image * C * C + columns[None, :]
    result = tl.zeros([BLOCK_N, BLOCK_C], tl.float32)
    for start in range(0, C, BLOCK_K):
        inner = start + tl.arange(0, BLOCK_K)
        read, inside = (rows < tokens) & (inner < C)[None, :], (inner < C)[:, None] & within
        some_x = tl.load(x + inner[None, :], mask=read, other=0.0)
        some_a = tl.load(a + inner[:, None] * C, mask=inside, other=0.0)
        result += dot(some_x, some_a, PRECISION)
        some_y = tl.load(y + inner[None, :], mask=read, other=0.0)
        some_b = tl.load(b + inner[:, None] * C, mask=inside, other=0.0)
        result += dot(some_y, some_b, PRECISION)
    result += tl.load(bias + image * C + columns, mask=columns < C, other=0.0).to(tl.float32)[None, :]
    at = out + (image * tokens + rows) * C + columns[None, :]
    tl.store(at, result.to(out.dtype.element_ty), mask=(rows < tokens) & within)
