"""Kernels of focused attention, forward: sums over tokens, and results from their means."""

import triton
import triton.language as tl

from ._depthwise import convolved
from ._focus import EPS, chunk, dot, feature, lengths, operand

__all__ = ["means_kernel", "means_of", "result_kernel"]


@triton.jit
def means_kernel(
    x,
    positions,
    factor,
    w,
    z,
    from_z,
    products,
    sums,
    tokens,
    x_image,
    x_token,
    w_image,
    w_token,
    split_tokens,
    splits,
    share,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    GROUP: tl.constexpr,
    POWER: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_G: tl.constexpr,
):
    """Sums of `f(x) w^T` and of `f(x)` over a part of an image's tokens, for a group of heads.

    In the backward pass, where w is the gradient of the result, w is multiplied by z and f(x), alone, by -from_z.
    Blocks of the product that belong to two heads are computed too: tensor cores are idle otherwise.
    """
    groups: tl.constexpr = (HEADS + GROUP - 1) // GROUP
    C: tl.constexpr = HEADS * D
    part = tl.program_id(0) // groups
    group = tl.program_id(0) % groups
    image = (part // splits).to(tl.int64)
    start = part % splits * split_tokens
    rows = tl.arange(0, BLOCK_N)
    columns = group * (GROUP * D) + tl.arange(0, BLOCK_G)
    within = (tl.arange(0, BLOCK_G) < GROUP * D) & (columns < C)
    x += image * x_image + start.to(tl.int64) * x_token
    w += image * w_image + start.to(tl.int64) * w_token
    if positions is not None:
        positions += start.to(tl.int64) * C
    if z is not None:
        z += (image * tokens + start) * HEADS
        from_z += (image * tokens + start) * HEADS
    product = tl.zeros([BLOCK_G, BLOCK_G], tl.float32)
    total = tl.zeros([BLOCK_G], tl.float32)
    for first in range(start, tl.minimum(start + split_tokens, tokens), BLOCK_N):
        valid = first + rows < tokens
        largest, length, power_length = lengths(
            x, positions, factor, rows, valid, x_token, C, C, POWER, BLOCK_N, BLOCK_C
        )
        _t, _opened, y = chunk(x, positions, factor, rows, valid, columns, within, x_token, C)
        features = operand(feature(y, largest, length, power_length, POWER), PRECISION)
        inside = valid[:, None] & within[None, :]
        other = tl.load(w + rows[:, None] * w_token + columns[None, :], mask=inside, other=0.0)
        single = tl.where(inside, features.to(tl.float32), 0.0)
        if z is not None:
            of_product = tl.zeros([BLOCK_N, BLOCK_G], tl.float32)
            of_sum = tl.zeros([BLOCK_N, BLOCK_G], tl.float32)
            for member in tl.static_range(GROUP):
                at = rows * HEADS + group * GROUP + member
                there = valid & (group * GROUP + member < HEADS)
                mine = (tl.arange(0, BLOCK_G) // D == member)[None, :]
                of_product = tl.where(mine, tl.load(z + at, mask=there, other=0.0)[:, None], of_product)
                of_sum = tl.where(mine, tl.load(from_z + at, mask=there, other=0.0)[:, None], of_sum)
            other = other.to(tl.float32) * of_product
            single *= -of_sum
            z += BLOCK_N * HEADS
            from_z += BLOCK_N * HEADS
        product += dot(tl.trans(features), other, PRECISION, z is not None)
        total += tl.sum(single, 0)
        x += BLOCK_N * x_token
        w += BLOCK_N * w_token
        if positions is not None:
            positions += BLOCK_N * C
    at = part.to(tl.int64) * C + columns
    tl.store(sums + at, total * share, mask=within)
    same_head = (columns // D)[:, None] == (columns // D)[None, :]
    inside = within[:, None] & within[None, :] & same_head
    tl.store(products + at[:, None] * D + (columns % D)[None, :], product * share, mask=inside)


@triton.jit
def means_of(kv, mean, head, D: tl.constexpr, BLOCK_D: tl.constexpr):
    at = tl.arange(0, BLOCK_D)
    within = at < D
    inside = within[:, None] & within[None, :]
    product = tl.load(kv + (head * D + at)[:, None] * D + at[None, :], mask=inside, other=0.0)
    return product, tl.load(mean + head * D + at, mask=within, other=0.0)


@triton.jit
def result_kernel(
    q,
    v,
    factor,
    kv,
    mean,
    weight,
    bias,
    out,
    tokens,
    run,
    width,
    q_image,
    q_token,
    v_image,
    v_token,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    POWER: tl.constexpr,
    SIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    C: tl.constexpr = HEADS * D
    runs = tl.cdiv(tokens, BLOCK_N * run)
    image = (tl.program_id(0) // runs).to(tl.int64)
    first = tl.program_id(0) % runs * (BLOCK_N * run)
    rows = tl.arange(0, BLOCK_N)
    q += image * q_image + first.to(tl.int64) * q_token
    v += image * v_image
    kv += image * C * D
    mean += image * C
    out += (image * tokens + first) * C
    for _tile in range(run):
        valid = first + rows < tokens
        largest, length, power_length = lengths(q, None, factor, rows, valid, q_token, C, C, POWER, BLOCK_N, BLOCK_C)
        for head in range(HEADS):
            columns = head * D + tl.arange(0, BLOCK_D)
            within = tl.arange(0, BLOCK_D) < D
            result = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
            if weight is not None:
                result = convolved(
                    v, weight, first, rows, valid, columns, within, v_token, tokens, width,
                    SIDE, False, BLOCK_N, BLOCK_D,
                )  # fmt: skip
            _t, _opened, y = chunk(q, None, factor, rows, valid, columns, within, q_token, C)
            features = operand(feature(y, largest, length, power_length, POWER), PRECISION)
            some_kv, some_mean = means_of(kv, mean, head, D, BLOCK_D)
            weights = tl.sum(features.to(tl.float32) * some_mean[None, :], 1)
            result += dot(features, some_kv, PRECISION) * (1.0 / (weights + EPS))[:, None]
            if weight is not None:
                result += tl.load(bias + columns, mask=within, other=0.0).to(tl.float32)[None, :]
            at = out + rows[:, None] * C + columns[None, :]
            tl.store(at, result.to(out.dtype.element_ty), mask=valid[:, None] & within[None, :])
        first += BLOCK_N
        q += BLOCK_N * q_token
        out += BLOCK_N * C
