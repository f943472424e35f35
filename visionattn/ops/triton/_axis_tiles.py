"""Tiles of maps, and of what is left of maps when some of their axes are pooled; see `_axis_kernels`."""

import triton
import triton.language as tl


@triton.jit
def program(L, M, N, chunk, MP: tl.constexpr, NP: tl.constexpr):
    """The image of a program and its part of each axis, and how many parts M and N have."""
    number = tl.program_id(0)
    parts_m, parts_n = tl.cdiv(M, MP), tl.cdiv(N, NP)
    part_n = number % parts_n
    number = number // parts_n
    part_m = number % parts_m
    number = number // parts_m
    parts_l = tl.cdiv(L, chunk)
    return number // parts_l, number % parts_l, part_m, part_n, parts_m, parts_n


@triton.jit
def image_at(pointer, image, L, M, N, AXES: tl.constexpr):
    """Where an image, or a part of one, begins in a tensor without some axes."""
    size = 1
    if AXES & 4 == 0:
        size *= L
    if AXES & 2 == 0:
        size *= M
    if AXES & 1 == 0:
        size *= N
    return pointer + image.to(tl.int64) * size


@triton.jit
def offsets(lo, mo, no, L, M, N, AXES: tl.constexpr):
    """Offsets of positions in an image of a tensor without some axes, of size 1 along these."""
    at = tl.zeros((1, 1, 1), tl.int32)
    if AXES & 4 == 0:
        at = at * L + lo
    if AXES & 2 == 0:
        at = at * M + mo
    if AXES & 1 == 0:
        at = at * N + no
    return at


@triton.jit
def mask(lo, mo, no, end, M, N, AXES: tl.constexpr):
    inside = tl.full((1, 1, 1), 1, tl.int1)
    if AXES & 4 == 0:
        inside = inside & (lo < end)
    if AXES & 2 == 0:
        inside = inside & (mo < M)
    if AXES & 1 == 0:
        inside = inside & (no < N)
    return inside


@triton.jit
def load(pointer, image, lo, mo, no, end, L, M, N, AXES: tl.constexpr):
    """A tile of a tensor without some axes, in float32, of size 1 along these."""
    at = image_at(pointer, image, L, M, N, AXES) + offsets(lo, mo, no, L, M, N, AXES)
    return tl.load(at, mask(lo, mo, no, end, M, N, AXES), other=0).to(tl.float32)


@triton.jit
def store(pointer, value, image, lo, mo, no, end, L, M, N, AXES: tl.constexpr):
    at = image_at(pointer, image, L, M, N, AXES) + offsets(lo, mo, no, L, M, N, AXES)
    tl.store(at, value, mask(lo, mo, no, end, M, N, AXES))


@triton.jit
def position(lo, mo, no, M, N, AXES: tl.constexpr):
    """The index along some axes, flattened."""
    at = tl.zeros((1, 1, 1), tl.int32)
    if AXES & 4:
        at += lo
    if AXES & 2:
        at = at * M + mo
    if AXES & 1:
        at = at * N + no
    return at


@triton.jit
def size_of(L, M, N, AXES: tl.constexpr):
    """How many positions some axes have."""
    size = 1
    if AXES & 4:
        size *= L
    if AXES & 2:
        size *= M
    if AXES & 1:
        size *= N
    return size


@triton.jit
def sum_over(x, AXES: tl.constexpr):
    if AXES & 4:
        x = tl.sum(x, 0, keep_dims=True)
    if AXES & 2:
        x = tl.sum(x, 1, keep_dims=True)
    if AXES & 1:
        x = tl.sum(x, 2, keep_dims=True)
    return x


@triton.jit
def max_over(x, AXES: tl.constexpr):
    if AXES & 4:
        x = tl.max(x, 0, keep_dims=True)
    if AXES & 2:
        x = tl.max(x, 1, keep_dims=True)
    if AXES & 1:
        x = tl.max(x, 2, keep_dims=True)
    return x


@triton.jit
def order_of(x, inside):
    """Integers that compare as the numbers do, in the upper half of int32 (half precision) or int64 (float32)."""
    # Zeros of both signs are one number; a NaN of either sign is the largest. What is not inside is the smallest.
    if x.dtype == tl.float32:
        bits = x.to(tl.int32, bitcast=True)
        size = bits & 0x7FFFFFFF
        order = tl.where((bits < 0) & (size <= 0x7F800000), -size, size).to(tl.int64) << 32
        order = tl.where(inside, order, -0x8000000000000000)
    else:
        infinity: tl.constexpr = 0x7C00 if x.dtype == tl.float16 else 0x7F80
        bits = x.to(tl.int16, bitcast=True).to(tl.int32)
        size = bits & 0x7FFF
        order = tl.where((bits < 0) & (size <= infinity), -size, size) << 16
        order = tl.where(inside, order, -0x80000000)
    return order


@triton.jit
def keys_of(order, at):
    """Integers whose maximum is that of the numbers at the smallest position."""
    last: tl.constexpr = 0xFFFFFFFF if order.dtype == tl.int64 else 0xFFFF
    return order | (last - at.to(order.dtype))


@triton.jit
def decode(keys, DTYPE: tl.constexpr):
    """The numbers and the positions that `keys_of` joined."""
    if keys.dtype == tl.int64:
        order = (keys >> 32).to(tl.int32)
        value = tl.where(order < 0, -order | -0x80000000, order).to(DTYPE, bitcast=True)
        at = (0xFFFFFFFF - (keys & 0xFFFFFFFF)).to(tl.int32)
    else:
        order = keys >> 16
        value = tl.where(order < 0, -order | 0x8000, order).to(tl.int16).to(DTYPE, bitcast=True)
        at = 0xFFFF - (keys & 0xFFFF)
    return value, at


@triton.jit
def store_maximum(maximum, index, keys, image, lo, mo, no, end, L, M, N, AXES: tl.constexpr, WHOLE: tl.constexpr):
    if WHOLE:
        value, position = decode(keys, maximum.dtype.element_ty)
        store(maximum, value, image, lo, mo, no, end, L, M, N, AXES)
        store(index, position, image, lo, mo, no, end, L, M, N, AXES)
    else:
        store(maximum, keys, image, lo, mo, no, end, L, M, N, AXES)


@triton.jit
def part_of(image, B, part_l, part_m, part_n, parts_m, parts_n, AXES: tl.constexpr):
    """Number of the part of an image that a program stores, given which part of each axis is the program's."""
    part = 0
    if AXES & 4:
        part += part_l
    if AXES & 2:
        part = part * parts_m + part_m
    if AXES & 1:
        part = part * parts_n + part_n
    return part * B + image


@triton.jit
def join(a, b, c, JOIN: tl.constexpr, COUNT: tl.constexpr):
    if COUNT == 1:
        return a
    if COUNT == 2:
        return a + b if JOIN == "sum" else a * b
    if JOIN == "sum":
        return a + b + c
    return a * b * c if JOIN == "product" else a * b + c


@triton.jit
def spread(value, mean, maximum, index, image, lo, mo, no, end, L, M, N, AXES: tl.constexpr):
    """Adds the gradients of a mean and a maximum over some axes, where there are such."""
    if mean is not None:
        value += load(mean, image, lo, mo, no, end, L, M, N, AXES) / size_of(L, M, N, AXES)
    if maximum is not None:
        chosen = image_at(index, image, L, M, N, AXES) + offsets(lo, mo, no, L, M, N, AXES)
        chosen = tl.load(chosen, mask(lo, mo, no, end, M, N, AXES), other=-1)
        grad = load(maximum, image, lo, mo, no, end, L, M, N, AXES)
        value += tl.where(position(lo, mo, no, M, N, AXES) == chosen, grad, 0.0)
    return value
