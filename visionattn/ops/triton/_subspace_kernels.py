"""Kernels for the scores of subspaces and the moments of channels, for maps `(B, C, H, W)` in both layouts.

A program owns a tile of one image: `(CB, HB, WB)` of an NCHW map, `(HB, WB, CB)` of an NHWC one, so that its last axis
is dense. Values around a cell are loaded once for each place they are needed in; all but the first time from the cache.

The gradient of the maxima is found again from the map: a cell has won a window if it is larger than all cells before it
there, in reading order, and no smaller than all after it.
"""

import triton
import triton.language as tl

__all__ = ["affine", "moments", "scores", "scores_backward"]


@triton.jit
def _program(H, W, HB: tl.constexpr, WB: tl.constexpr):
    """What a program is for besides its rows and columns, and the part of these that it has."""
    number = tl.program_id(0)
    parts_w = tl.cdiv(W, WB)
    part_w = number % parts_w
    number = number // parts_w
    parts_h = tl.cdiv(H, HB)
    return number // parts_h, number % parts_h, part_w


@triton.jit
def _axes(part_h, part_w, first_c, HB: tl.constexpr, WB: tl.constexpr, CB: tl.constexpr, NHWC: tl.constexpr):
    """Rows, columns and channels of a tile, each along its axis."""
    if NHWC:
        h = tl.arange(0, HB)[:, None, None]
        w = tl.arange(0, WB)[None, :, None]
        c = tl.arange(0, CB)[None, None, :]
    else:
        h = tl.arange(0, HB)[None, :, None]
        w = tl.arange(0, WB)[None, None, :]
        c = tl.arange(0, CB)[:, None, None]
    return part_h * HB + h, part_w * WB + w, first_c + c


@triton.jit
def _offsets(c, h, w, C, H, W, NHWC: tl.constexpr):
    at = (h * W + w) * C + c if NHWC else (c * H + h) * W + w
    return at


@triton.jit
def _over_positions(x, NHWC: tl.constexpr):
    """The sum over the rows and columns of a tile: `(CB,)`."""
    x = tl.sum(tl.sum(x, 1), 0) if NHWC else tl.sum(tl.sum(x, 2), 1)
    return x


@triton.jit
def _activation(x, c, h, w, scale, shift, inside_c, C, H, W, NHWC: tl.constexpr):
    """`scale * x + shift`, and -1 beyond the border, where nothing can win."""
    inside = (h >= 0) & (h < H) & (w >= 0) & (w < W)
    value = tl.load(x + _offsets(c, h, w, C, H, W, NHWC), inside & inside_c, other=0).to(tl.float32)
    return tl.where(inside, value * scale + shift, -1.0)


@triton.jit
def scores(
    x, scale, shift, weight, out,
    C, GROUP, GROUPS, H, units,
    UNIT: tl.constexpr, NHWC: tl.constexpr,
    HB: tl.constexpr, WB: tl.constexpr, CB: tl.constexpr,
):  # fmt: skip
    """`sum_c weight * max3x3(relu(scale * x + shift))` over the GROUP channels of each group: `(B, GROUPS, H, W)`."""
    W = units * UNIT
    place, part_h, part_w = _program(H, W, HB, WB)
    image, group = place // GROUPS, place % GROUPS
    x += image.to(tl.int64) * C * H * W
    total = tl.zeros((HB, WB, CB), tl.float32) if NHWC else tl.zeros((CB, HB, WB), tl.float32)
    for first in range(0, GROUP, CB):
        h, w, c = _axes(part_h, part_w, first, HB, WB, CB, NHWC)
        inside = c < GROUP
        c += group * GROUP
        factor = tl.load(scale + c, inside, other=0).to(tl.float32)
        summand = tl.load(shift + c, inside, other=0).to(tl.float32)
        best = tl.zeros_like(total)  # a ReLU's smallest
        for dh in tl.static_range(-1, 2):
            for dw in tl.static_range(-1, 2):
                value = _activation(x, c, h + dh, w + dw, factor, summand, inside, C, H, W, NHWC)
                best = tl.maximum(best, value, propagate_nan=tl.PropagateNan.ALL)
        total += best * tl.load(weight + c, inside, other=0).to(tl.float32)
    h, w, c = _axes(part_h, part_w, 0, HB, WB, CB, NHWC)
    total = tl.sum(total, 2, keep_dims=True) if NHWC else tl.sum(total, 0, keep_dims=True)
    tl.store(out + place.to(tl.int64) * H * W + h * W + w, total, (h < H) & (w < W))


@triton.jit
def scores_backward(
    grad, x, scale, shift, weight, base, attention, slope, offset,
    dx, totals, moments,
    B, C, GROUP, H, units,
    UNIT: tl.constexpr, NHWC: tl.constexpr,
    HB: tl.constexpr, WB: tl.constexpr, CB: tl.constexpr,
):  # fmt: skip
    """The gradient of x; and for each part of an image, `(parts, B, C)`, sums over its positions. None is left out.

    Added to the gradient are `base * (1 + attention)`, the attention `(B, GROUPS, H, W)`, and `slope * x + offset` for
    numbers of each channel of each image. The sums are of what the windows hand to each cell, without the weights:
    alone (totals) and times x (moments).
    """
    W = units * UNIT
    place, part_h, part_w = _program(H, W, HB, WB)
    chunks = tl.cdiv(C, CB)
    image, chunk = place // chunks, place % chunks
    h, w, c = _axes(part_h, part_w, chunk * CB, HB, WB, CB, NHWC)
    start = image.to(tl.int64) * C * H * W
    x += start
    grad += image.to(tl.int64) * (C // GROUP) * H * W
    inside_c = c < C
    factor = tl.load(scale + c, inside_c, other=0).to(tl.float32)
    summand = tl.load(shift + c, inside_c, other=0).to(tl.float32)
    inside = inside_c & (h < H) & (w < W)
    cell = _activation(x, c, h, w, factor, summand, inside_c, C, H, W, NHWC)
    # Whether the cell beats what each row, from two above it to two below, has in the windows to its left (l), around
    # it (m) and to its right (r).
    l0, m0, r0 = _beats(cell, x, c, h, w, -2, factor, summand, inside_c, C, H, W, NHWC)
    l1, m1, r1 = _beats(cell, x, c, h, w, -1, factor, summand, inside_c, C, H, W, NHWC)
    l2, m2, r2 = _beats(cell, x, c, h, w, 0, factor, summand, inside_c, C, H, W, NHWC)
    l3, m3, r3 = _beats(cell, x, c, h, w, 1, factor, summand, inside_c, C, H, W, NHWC)
    l4, m4, r4 = _beats(cell, x, c, h, w, 2, factor, summand, inside_c, C, H, W, NHWC)
    l2, m2, r2 = l2 & (cell > 0), m2 & (cell > 0), r2 & (cell > 0)
    routed = tl.zeros_like(cell)
    routed += tl.where(l0 & l1 & l2, _window(grad, c, h - 1, w - 1, GROUP, C, H, W), 0.0)
    routed += tl.where(m0 & m1 & m2, _window(grad, c, h - 1, w, GROUP, C, H, W), 0.0)
    routed += tl.where(r0 & r1 & r2, _window(grad, c, h - 1, w + 1, GROUP, C, H, W), 0.0)
    routed += tl.where(l1 & l2 & l3, _window(grad, c, h, w - 1, GROUP, C, H, W), 0.0)
    routed += tl.where(m1 & m2 & m3, _window(grad, c, h, w, GROUP, C, H, W), 0.0)
    routed += tl.where(r1 & r2 & r3, _window(grad, c, h, w + 1, GROUP, C, H, W), 0.0)
    routed += tl.where(l2 & l3 & l4, _window(grad, c, h + 1, w - 1, GROUP, C, H, W), 0.0)
    routed += tl.where(m2 & m3 & m4, _window(grad, c, h + 1, w, GROUP, C, H, W), 0.0)
    routed += tl.where(r2 & r3 & r4, _window(grad, c, h + 1, w + 1, GROUP, C, H, W), 0.0)
    routed = tl.where(inside, routed, 0.0)
    at = _offsets(c, h, w, C, H, W, NHWC)
    value = tl.load(x + at, inside, other=0).to(tl.float32)
    if dx is not None:
        result = routed * (factor * tl.load(weight + c, inside_c, other=0).to(tl.float32))
        if base is not None:
            gated = tl.load(base + start + at, inside, other=0).to(tl.float32)
            if attention is not None:
                maps = attention + image.to(tl.int64) * (C // GROUP) * H * W
                gated += gated * tl.load(maps + ((c // GROUP) * H + h) * W + w, inside, other=0).to(tl.float32)
            result += gated
        if slope is not None:
            own = image * C + c
            result += value * tl.load(slope + own, inside_c, other=0) + tl.load(offset + own, inside_c, other=0)
        tl.store(dx + start + at, result, inside)
    if totals is not None:
        channel = chunk * CB + tl.arange(0, CB)
        part = ((part_h * tl.cdiv(W, WB) + part_w) * B + image).to(tl.int64) * C + channel
        tl.store(totals + part, _over_positions(routed, NHWC), channel < C)
        tl.store(moments + part, _over_positions(routed * value, NHWC), channel < C)


@triton.jit
def _beats(
    cell, x, c, h, w, ROW: tl.constexpr, factor, summand, inside_c, C, H: tl.constexpr, W: tl.constexpr,
    NHWC: tl.constexpr,
):  # fmt: skip
    """Whether a cell beats the three cells of a row that the windows to its left, around it and to its right have."""
    left = cell == cell
    middle = left
    right = left
    for column in tl.static_range(-2, 3):
        if ROW != 0 or column != 0:
            other = _activation(x, c, h + ROW, w + column, factor, summand, inside_c, C, H, W, NHWC)
            beats = cell > other if ROW < 0 or (ROW == 0 and column < 0) else cell >= other
            if column <= 0:
                left = left & beats
            if column >= -1 and column <= 1:
                middle = middle & beats
            if column >= 0:
                right = right & beats
    return left, middle, right


@triton.jit
def _window(grad, c, h, w, GROUP, C, H, W):
    """The gradients of the maxima around these positions; none beyond the border."""
    inside = (c < C) & (h >= 0) & (h < H) & (w >= 0) & (w < W)
    return tl.load(grad + ((c // GROUP) * H + h) * W + w, inside, other=0).to(tl.float32)


@triton.jit
def moments(
    x, sums, squares,
    B, C, H, units, chunk,
    UNIT: tl.constexpr, NHWC: tl.constexpr,
    HB: tl.constexpr, WB: tl.constexpr, CB: tl.constexpr,
):  # fmt: skip
    """Of each channel of each image the sum of values and of their squares over a chunk of rows, `(parts, B, C)`.

    Both are taken around the first value of the channel, so large means do no harm.
    """
    W = units * UNIT
    channels = tl.cdiv(C, CB)
    first_c = tl.program_id(0) % channels * CB
    number = tl.program_id(0) // channels
    parts = tl.cdiv(H, chunk)
    part, image = number % parts, number // parts
    x += image.to(tl.int64) * C * H * W
    if NHWC:
        total = tl.zeros((HB, WB, CB), tl.float32)
        square = tl.zeros((HB, WB, CB), tl.float32)
    else:
        total = tl.zeros((CB, HB, WB), tl.float32)
        square = tl.zeros((CB, HB, WB), tl.float32)
    h, w, c = _axes(0, 0, first_c, HB, WB, CB, NHWC)
    origin = tl.load(x + _offsets(c, 0, 0, C, H, W, NHWC), c < C, other=0).to(tl.float32)
    end = tl.minimum(part * chunk + chunk, H)
    for first_h in range(part * chunk, end, HB):
        for first_w in range(0, W, WB):
            rows, columns = first_h + h, first_w + w
            inside = (c < C) & (rows < end) & (columns < W)
            value = tl.load(x + _offsets(c, rows, columns, C, H, W, NHWC), inside, other=0).to(tl.float32)
            value = tl.where(inside, value - origin, 0.0)
            total += value
            square += value * value
    channel = first_c + tl.arange(0, CB)
    at = (part * B + image).to(tl.int64) * C + channel
    tl.store(sums + at, _over_positions(total, NHWC), channel < C)
    tl.store(squares + at, _over_positions(square, NHWC), channel < C)


@triton.jit
def affine(
    x, scale, shift, base, out,
    C, H, units,
    UNIT: tl.constexpr, NHWC: tl.constexpr,
    HB: tl.constexpr, WB: tl.constexpr, CB: tl.constexpr,
):  # fmt: skip
    """`scale * x + shift` for numbers of each channel of each image, added to `base`."""
    W = units * UNIT
    place, part_h, part_w = _program(H, W, HB, WB)
    chunks = tl.cdiv(C, CB)
    image, chunk = place // chunks, place % chunks
    start = image.to(tl.int64) * C * H * W
    h, w, c = _axes(part_h, part_w, chunk * CB, HB, WB, CB, NHWC)
    inside = (c < C) & (h < H) & (w < W)
    at = _offsets(c, h, w, C, H, W, NHWC)
    value = tl.load(x + start + at, inside, other=0).to(tl.float32)
    own = image * C + c
    value = value * tl.load(scale + own, c < C, other=0) + tl.load(shift + own, c < C, other=0)
    if base is not None:
        value += tl.load(base + start + at, inside, other=0).to(tl.float32)
    tl.store(out + start + at, value, inside)
