"""Kernels that pool a map over axes, gate it with what lacks those axes, and the backward passes of both.

A map is taken as it lies, `(B, L, M, N)` with N dense: L, M, N are C, H, W of an NCHW map and H, W, C of an NHWC one.
So one kernel serves both layouts. A set of axes is a number: 4 for L, 2 for M, 1 for N, and their sums. "Without" such
a set, a tensor holds a number for each image and each position of the other axes, in their order. Of the sizes a kernel
is compiled for one only, the power of 2 that divides N, so that whole rows of any such map load in wide words.

Programs own a tile `(LB, MP, NP)` of one image, or walk along L with one, while the next tiles are on their way. What
they find of an axis that several programs share, they store as parts `(splits, B, ...)`, which `finish` adds up in
order. So all results repeat bit for bit.

Maxima are found as integers: the number's order in the upper half, the countdown of its position in the lower. One
integer maximum gives both value and first index, and a NaN is larger than all.
"""

import triton
import triton.language as tl

from ._axis_tiles import (
    decode,
    join,
    keys_of,
    load,
    mask,
    max_over,
    order_of,
    part_of,
    position,
    program,
    size_of,
    spread,
    store,
    store_maximum,
    sum_over,
)

__all__ = ["finish", "gate", "gate_backward", "pool"]


@triton.jit
def pool(
    x, weight,
    mean0, max0, index0, mean1, max1, index1, mean2, max2, index2,
    B, L, M, units, chunk,
    UNIT: tl.constexpr, WEIGHT: tl.constexpr,
    AXES0: tl.constexpr, AXES1: tl.constexpr, AXES2: tl.constexpr,
    WHOLE0: tl.constexpr, WHOLE1: tl.constexpr, WHOLE2: tl.constexpr,
    LB: tl.constexpr, MP: tl.constexpr, NP: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Means and maxima of `x [* weight]` over up to three sets of axes.

    x is read once, by programs for an image, a chunk of L and a tile of M and N. A set of axes 0 is none. Where a set
    is WHOLE, each program has all of it and stores results; else sums and keys, for `finish`. `weight` lacks the axes
    WEIGHT.
    """
    N = units * UNIT
    image, part_l, part_m, part_n, parts_m, parts_n = program(L, M, N, chunk, MP, NP)
    mo = part_m * MP + tl.arange(0, MP)[None, :, None]
    no = part_n * NP + tl.arange(0, NP)[None, None, :]
    end = tl.minimum(part_l * chunk + chunk, L)
    least: tl.constexpr = -0x8000000000000000 if x.dtype.element_ty == tl.float32 else -0x80000000
    wide: tl.constexpr = tl.int64 if x.dtype.element_ty == tl.float32 else tl.int32
    total0 = tl.zeros((LB, MP, NP), tl.float32)
    total1 = tl.zeros((LB, MP, NP), tl.float32)
    total2 = tl.zeros((LB, MP, NP), tl.float32)
    best0 = tl.full((LB, MP, NP), least, wide)
    best1 = tl.full((LB, MP, NP), least, wide)
    best2 = tl.full((LB, MP, NP), least, wide)
    at0 = part_of(image, B, part_l, part_m, part_n, parts_m, parts_n, AXES0)
    at1 = part_of(image, B, part_l, part_m, part_n, parts_m, parts_n, AXES1)
    at2 = part_of(image, B, part_l, part_m, part_n, parts_m, parts_n, AXES2)
    for first in tl.range(part_l * chunk, end, LB, num_stages=STAGES):
        lo = first + tl.arange(0, LB)[:, None, None]
        value = load(x, image, lo, mo, no, end, L, M, N, 0)
        if weight is not None:
            value *= load(weight, image, lo, mo, no, end, L, M, N, WEIGHT)
        order = order_of(value.to(x.dtype.element_ty), mask(lo, mo, no, end, M, N, 0))
        total0, best0 = _pooled(
            value, order, total0, best0, mean0, max0, index0, at0, lo, mo, no, end, L, M, N, AXES0, WHOLE0
        )
        total1, best1 = _pooled(
            value, order, total1, best1, mean1, max1, index1, at1, lo, mo, no, end, L, M, N, AXES1, WHOLE1
        )
        total2, best2 = _pooled(
            value, order, total2, best2, mean2, max2, index2, at2, lo, mo, no, end, L, M, N, AXES2, WHOLE2
        )
    # L is behind us in what is stored here.
    _store_pooled(total0, best0, mean0, max0, index0, at0, mo, no, L, M, N, AXES0, WHOLE0)
    _store_pooled(total1, best1, mean1, max1, index1, at1, mo, no, L, M, N, AXES1, WHOLE1)
    _store_pooled(total2, best2, mean2, max2, index2, at2, mo, no, L, M, N, AXES2, WHOLE2)


@triton.jit
def _pooled(
    value, order, total, best, mean, maximum, index, at, lo, mo, no, end, L, M, N,
    AXES: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """One tile of one pool: added to the running ones if L is pooled, stored if it is not."""
    if mean is not None:
        if AXES & 4:
            total += value
        else:
            store(mean, sum_over(value, AXES) / size_of(L, M, N, AXES), at, lo, mo, no, end, L, M, N, AXES)
    if maximum is not None:
        keys = keys_of(order, position(lo, mo, no, M, N, AXES))
        if AXES & 4:
            best = tl.maximum(best, keys)
        else:
            store_maximum(maximum, index, max_over(keys, AXES), at, lo, mo, no, end, L, M, N, AXES, WHOLE)
    return total, best


@triton.jit
def _store_pooled(total, best, mean, maximum, index, at, mo, no, L, M, N, AXES: tl.constexpr, WHOLE: tl.constexpr):
    if AXES & 4:
        if mean is not None:
            store(mean, sum_over(total, AXES) / size_of(L, M, N, AXES), at, 0, mo, no, L, L, M, N, AXES)
        if maximum is not None:
            store_maximum(maximum, index, max_over(best, AXES), at, 0, mo, no, L, L, M, N, AXES, WHOLE)


@triton.jit
def finish(sums, keys, total, maximum, index, size, splits, BLOCK: tl.constexpr):
    """Joins parts `(splits, size)`: adds sums up in order, and finds the maximum with its first index."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    if sums is not None:
        found = tl.zeros((BLOCK,), tl.float32)
        for part in range(splits):
            found += tl.load(sums + tl.cast(part, tl.int64) * size + at, inside, other=0)
        tl.store(total + at, found, inside)
    if keys is not None:
        best = tl.load(keys + at, inside, other=0)
        for part in range(1, splits):
            best = tl.maximum(best, tl.load(keys + tl.cast(part, tl.int64) * size + at, inside, other=0))
        value, position = decode(best, maximum.dtype.element_ty)
        tl.store(maximum + at, value, inside)
        tl.store(index + at, position, inside)


@triton.jit
def gate(
    x, other, out, gate0, gate1, gate2,
    mean0, max0, index0, mean1, max1, index1, mean2, max2, index2,
    L, M, units,
    UNIT: tl.constexpr,
    COUNT: tl.constexpr, JOIN: tl.constexpr, ONE: tl.constexpr, SIGMOID: tl.constexpr, RELU: tl.constexpr,
    GATE0: tl.constexpr, GATE1: tl.constexpr, GATE2: tl.constexpr,
    AXES0: tl.constexpr, AXES1: tl.constexpr, AXES2: tl.constexpr, INNER: tl.constexpr,
    LB: tl.constexpr, MP: tl.constexpr, NP: tl.constexpr,
):  # fmt: skip
    """`x * gate + other`, with the gradients of up to three means and maxima added, then ReLU; None is left out.

    The gate is joined of COUNT gates, which lack the axes GATE0 to GATE2, then its sigmoid, then 1 more. INNER: the
    first mean and maximum are of a product with the first gate.
    """
    N = units * UNIT
    image, part_l, part_m, part_n, _m, _n = program(L, M, N, LB, MP, NP)
    lo = part_l * LB + tl.arange(0, LB)[:, None, None]
    mo = part_m * MP + tl.arange(0, MP)[None, :, None]
    no = part_n * NP + tl.arange(0, NP)[None, None, :]
    value = tl.zeros((LB, MP, NP), tl.float32)
    if x is not None:
        value = load(x, image, lo, mo, no, L, L, M, N, 0)
    if COUNT > 0:
        a = load(gate0, image, lo, mo, no, L, L, M, N, GATE0)
        b = a
        c = a
        if COUNT > 1:
            b = load(gate1, image, lo, mo, no, L, L, M, N, GATE1)
        if COUNT > 2:
            c = load(gate2, image, lo, mo, no, L, L, M, N, GATE2)
        joined = join(a, b, c, JOIN, COUNT)
        if SIGMOID:
            joined = tl.sigmoid(joined)
        if ONE:
            joined += 1
        value *= joined
    if other is not None:
        value += load(other, image, lo, mo, no, L, L, M, N, 0)
    if INNER:
        inner = spread(tl.zeros((LB, MP, NP), tl.float32), mean0, max0, index0, image, lo, mo, no, L, L, M, N, AXES0)
        value += inner * load(gate0, image, lo, mo, no, L, L, M, N, GATE0)
    else:
        value = spread(value, mean0, max0, index0, image, lo, mo, no, L, L, M, N, AXES0)
    value = spread(value, mean1, max1, index1, image, lo, mo, no, L, L, M, N, AXES1)
    value = spread(value, mean2, max2, index2, image, lo, mo, no, L, L, M, N, AXES2)
    if RELU:
        value = tl.where(value <= 0, 0.0, value)  # keeps NaN
    store(out, value, image, lo, mo, no, L, L, M, N, 0)


@triton.jit
def gate_backward(
    dy, y, x, other, gate0, gate1, gate2,
    mean, maximum, index,
    dx, dz, d0, d1, d2,
    B, L, M, units, chunk,
    UNIT: tl.constexpr,
    COUNT: tl.constexpr, JOIN: tl.constexpr, ONE: tl.constexpr, SIGMOID: tl.constexpr,
    GATE0: tl.constexpr, GATE1: tl.constexpr, GATE2: tl.constexpr, AXES: tl.constexpr,
    LB: tl.constexpr, MP: tl.constexpr, NP: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Gradients of `gate`: of x, with `other` added, and of each gate, as sums over the axes that it lacks.

    The gradient of the product, dz, is `dy` where `y > 0` (everywhere if y is None); or, if dy is None, that of a mean
    and a maximum of the product over AXES. Programs as in `pool`; sums of gates that several share are parts.
    """
    N = units * UNIT
    image, part_l, part_m, part_n, parts_m, parts_n = program(L, M, N, chunk, MP, NP)
    mo = part_m * MP + tl.arange(0, MP)[None, :, None]
    no = part_n * NP + tl.arange(0, NP)[None, None, :]
    end = tl.minimum(part_l * chunk + chunk, L)
    total0 = tl.zeros((LB, MP, NP), tl.float32)
    total1 = tl.zeros((LB, MP, NP), tl.float32)
    total2 = tl.zeros((LB, MP, NP), tl.float32)
    at0 = part_of(image, B, part_l, part_m, part_n, parts_m, parts_n, GATE0)
    at1 = part_of(image, B, part_l, part_m, part_n, parts_m, parts_n, GATE1)
    at2 = part_of(image, B, part_l, part_m, part_n, parts_m, parts_n, GATE2)
    for first in tl.range(part_l * chunk, end, LB, num_stages=STAGES):
        lo = first + tl.arange(0, LB)[:, None, None]
        if dy is not None:
            grad = load(dy, image, lo, mo, no, end, L, M, N, 0)
            if y is not None:
                grad = tl.where(load(y, image, lo, mo, no, end, L, M, N, 0) > 0, grad, 0.0)
        else:
            grad = tl.zeros((LB, MP, NP), tl.float32)
            grad = spread(grad, mean, maximum, index, image, lo, mo, no, end, L, M, N, AXES)
        if dz is not None:
            store(dz, grad, image, lo, mo, no, end, L, M, N, 0)
        a = load(gate0, image, lo, mo, no, end, L, M, N, GATE0)
        b = a
        c = a
        if COUNT > 1:
            b = load(gate1, image, lo, mo, no, end, L, M, N, GATE1)
        if COUNT > 2:
            c = load(gate2, image, lo, mo, no, end, L, M, N, GATE2)
        joined = join(a, b, c, JOIN, COUNT)
        # Beyond the chunk grad is zero or x is: nothing is added there.
        product = grad * load(x, image, lo, mo, no, end, L, M, N, 0)
        if SIGMOID:
            joined = tl.sigmoid(joined)
            product *= joined * (1 - joined)
        if dx is not None:
            result = grad * (joined + 1 if ONE else joined)
            if other is not None:
                result += load(other, image, lo, mo, no, end, L, M, N, 0)
            store(dx, result, image, lo, mo, no, end, L, M, N, 0)
        share0 = product
        share1 = product
        share2 = product
        if COUNT > 1 and JOIN != "sum":
            share0 *= b
            share1 *= a
        if COUNT > 2 and JOIN == "product":
            share0 *= c
            share1 *= c
            share2 *= a * b
        total0 = _summed(share0, total0, d0, at0, lo, mo, no, end, L, M, N, GATE0)
        total1 = _summed(share1, total1, d1, at1, lo, mo, no, end, L, M, N, GATE1)
        total2 = _summed(share2, total2, d2, at2, lo, mo, no, end, L, M, N, GATE2)
    _store_summed(total0, d0, at0, mo, no, L, M, N, GATE0)
    _store_summed(total1, d1, at1, mo, no, L, M, N, GATE1)
    _store_summed(total2, d2, at2, mo, no, L, M, N, GATE2)


@triton.jit
def _summed(value, total, out, at, lo, mo, no, end, L, M, N, AXES: tl.constexpr):
    if out is not None:
        if AXES & 4:
            total += value
        else:
            store(out, sum_over(value, AXES), at, lo, mo, no, end, L, M, N, AXES)
    return total


@triton.jit
def _store_summed(total, out, at, mo, no, L, M, N, AXES: tl.constexpr):
    if out is not None and AXES & 4:
        store(out, sum_over(total, AXES), at, 0, mo, no, L, L, M, N, AXES)
