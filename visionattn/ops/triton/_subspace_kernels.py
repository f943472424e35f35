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
def _offsets(c, h, w, C, H: tl.constexpr, W: tl.constexpr, NHWC: tl.constexpr):
    at = (h * W + w) * C + c if NHWC else (c * H + h) * W + w
    return at


@triton.jit
def _over_positions(x, NHWC: tl.constexpr):
    """The sum over the rows and columns of a tile: `(CB,)`."""
    x = tl.sum(tl.sum(x, 1), 0) if NHWC else tl.sum(tl.sum(x, 2), 1)
    return x


@triton.jit
def _activation(x, c, h, w, scale, shift, inside_c, C, H: tl.constexpr, W: tl.constexpr, NHWC: tl.constexpr):
    """`scale * x + shift`, and -1 beyond the border, where nothing can win."""
    inside = (h >= 0) & (h < H) & (w >= 0) & (w < W)
    value = tl.load(x + _offsets(c, h, w, C, H, W, NHWC), inside & inside_c, other=0).to(tl.float32)
    return tl.where(inside, value * scale + shift, -1.0)


@triton.jit
def scores(
    x, scale, shift, weight, out,
    C, GROUP, GROUPS,
    H: tl.constexpr, W: tl.constexpr, NHWC: tl.constexpr,
    HB: tl.constexpr, WB: tl.constexpr, CB: tl.constexpr,
):  # fmt: skip
    """`sum_c weight * max3x3(relu(scale * x + shift))` over the GROUP channels of each group: `(B, GROUPS, H, W)`."""
    image, group = tl.program_id(0) // GROUPS, tl.program_id(0) % GROUPS
    PW: tl.constexpr = (W + WB - 1) // WB
    part_h, part_w = tl.program_id(1) // PW, tl.program_id(1) % PW
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
                best = tl.maximum(best, value)
        total += best * tl.load(weight + c, inside, other=0).to(tl.float32)
    h, w, c = _axes(part_h, part_w, 0, HB, WB, CB, NHWC)
    total = tl.sum(total, 2, keep_dims=True) if NHWC else tl.sum(total, 0, keep_dims=True)
    tl.store(out + tl.program_id(0).to(tl.int64) * H * W + h * W + w, total, (h < H) & (w < W))


@triton.jit
def scores_backward(
    grad, x, scale, shift, weight, base,
    dx, totals, moments,
    B, C, GROUP,
    H: tl.constexpr, W: tl.constexpr, NHWC: tl.constexpr,
    HB: tl.constexpr, WB: tl.constexpr, CB: tl.constexpr,
):  # fmt: skip
    """The gradient of x, added to `base`; and for each part of an image, `(parts, B, C)`, sums over its positions.

    The sums are of what the windows hand to each cell, without the weights: alone (totals) and times x (moments).
    """
    image = tl.program_id(0)
    PW: tl.constexpr = (W + WB - 1) // WB
    part_h, part_w = tl.program_id(1) // PW, tl.program_id(1) % PW
    h, w, c = _axes(part_h, part_w, tl.program_id(2) * CB, HB, WB, CB, NHWC)
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
    result = routed * (factor * tl.load(weight + c, inside_c, other=0).to(tl.float32))
    if base is not None:
        result += tl.load(base + start + at, inside, other=0).to(tl.float32)
    tl.store(dx + start + at, result, inside)
    channel = tl.program_id(2) * CB + tl.arange(0, CB)
    part = (tl.program_id(1) * B + image).to(tl.int64) * C + channel
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
def _window(grad, c, h, w, GROUP, C, H: tl.constexpr, W: tl.constexpr):
    """The gradients of the maxima around these positions; none beyond the border."""
    inside = (c < C) & (h >= 0) & (h < H) & (w >= 0) & (w < W)
    return tl.load(grad + ((c // GROUP) * H + h) * W + w, inside, other=0).to(tl.float32)


@triton.jit
def moments(
    x, means, squares,
    C,
    H: tl.constexpr, W: tl.constexpr, NHWC: tl.constexpr,
    HB: tl.constexpr, WB: tl.constexpr, CB: tl.constexpr,
):  # fmt: skip
    """Of each channel of each image the mean and the sum of squares around it, `(B, C)`, in one pass.

    The squares are taken around the first value and moved to the mean in the end, so large means do no harm.
    """
    image = tl.program_id(0)
    x += image.to(tl.int64) * C * H * W
    if NHWC:
        total = tl.zeros((HB, WB, CB), tl.float32)
        square = tl.zeros((HB, WB, CB), tl.float32)
    else:
        total = tl.zeros((CB, HB, WB), tl.float32)
        square = tl.zeros((CB, HB, WB), tl.float32)
    h, w, c = _axes(0, 0, tl.program_id(1) * CB, HB, WB, CB, NHWC)
    origin = tl.load(x + _offsets(c, 0, 0, C, H, W, NHWC), c < C, other=0).to(tl.float32)
    for first_h in range(0, H, HB):
        for first_w in range(0, W, WB):
            rows, columns = first_h + h, first_w + w
            inside = (c < C) & (rows < H) & (columns < W)
            value = tl.load(x + _offsets(c, rows, columns, C, H, W, NHWC), inside, other=0).to(tl.float32)
            value = tl.where(inside, value - origin, 0.0)
            total += value
            square += value * value
    channel = tl.program_id(1) * CB + tl.arange(0, CB)
    if NHWC:
        first = tl.load(x + channel, channel < C, other=0).to(tl.float32)
    else:
        first = tl.load(x + channel * (H * W), channel < C, other=0).to(tl.float32)
    sums = _over_positions(total, NHWC)
    moved = _over_positions(square, NHWC) - sums * sums / (H * W)
    at = image.to(tl.int64) * C + channel
    tl.store(means + at, first + sums / (H * W), channel < C)
    tl.store(squares + at, moved, channel < C)


@triton.jit
def affine(
    x, scale, shift, base, out,
    C,
    H: tl.constexpr, W: tl.constexpr, NHWC: tl.constexpr,
    HB: tl.constexpr, WB: tl.constexpr, CB: tl.constexpr,
):  # fmt: skip
    """`scale * x + shift` for numbers of each channel of each image, added to `base`."""
    start = tl.program_id(0).to(tl.int64) * C * H * W
    PW: tl.constexpr = (W + WB - 1) // WB
    part_h, part_w = tl.program_id(1) // PW, tl.program_id(1) % PW
    h, w, c = _axes(part_h, part_w, tl.program_id(2) * CB, HB, WB, CB, NHWC)
    inside = (c < C) & (h < H) & (w < W)
    at = _offsets(c, h, w, C, H, W, NHWC)
    value = tl.load(x + start + at, inside, other=0).to(tl.float32)
    own = tl.program_id(0) * C + c
    value = value * tl.load(scale + own, c < C, other=0) + tl.load(shift + own, c < C, other=0)
    if base is not None:
        value += tl.load(base + start + at, inside, other=0).to(tl.float32)
    tl.store(out + start + at, value, inside)
