"""The kernels of block-sparse attention: rows are read where they lie, one block and head a program.

Names: a block's queries stand in its `slots`, its keys are counted from 0 to `keys`; `SLOTS` and `KEYS` are the next
multiples of 16, so that blocks of about a size share compiled kernels. Which token stands in a slot is computed for
windows, of `TALL` rows and `WIDE` columns, and looked up in a table of tokens where `WIDE` is 0. Keys of a window may
reach `HALO` positions beyond it. With `TERMS` there are `distances`, of each query `SPAN` numbers for all distances
down and as many for those across: the terms that are added to its scores, by the row and the column of the key. A
program goes through the keys tile by tile with a running softmax. Backward rebuilds the weights from the largest score
of each query, to base 2, and one over the sum of its weights: not from one logarithm, which has no digits left where
scores are large.
Nothing is added up by more than one program: results are the same bits in every run.
"""

import triton
import triton.language as tl

from ._register import INTERPRETED

__all__ = ["attend", "grad_bias", "grad_keys", "grad_queries"]

LOG2E = tl.constexpr(1.4426950408889634)
# The interpreter multiplies the bits of bfloat16, not what they stand for.
_WIDENED = tl.constexpr(INTERPRETED)


@triton.jit
def _program(heads, blocks, TILES: tl.constexpr):
    """Which head, tile, block and image a program is for; heads of a token stand side by side, and so do programs."""
    number = tl.program_id(0)
    head = number % heads
    tile = number // heads % TILES
    number = number // heads // TILES
    return head, tile, number % blocks, (number // blocks).to(tl.int64)


@triton.jit
def _tokens(
    table,
    image,
    head,
    block,
    slot,
    there,
    tokens,
    height,
    width,
    by_image,
    by_head,
    slots,
    TALL: tl.constexpr,
    WIDE: tl.constexpr,
    DOWN: tl.constexpr,
    RIGHT: tl.constexpr,
):
    """The token in each slot, whether there is one, and to which part of a shifted window it belongs."""
    if WIDE == 0:
        token = tl.load(table + image * by_image + head * by_head + block * slots + slot, mask=there, other=tokens)
        held = token < tokens
        part = token * 0
    else:
        columns = tl.cdiv(width, WIDE)
        row = block // columns * TALL + slot // WIDE + DOWN
        column = block % columns * WIDE + slot % WIDE + RIGHT
        if DOWN:
            end = tl.cdiv(height, TALL) * TALL
            row = tl.where(row < end, row, row - end)
        if RIGHT:
            end = columns * WIDE
            column = tl.where(column < end, column, column - end)
        token = row * width + column
        held = there & (row < height) & (column < width)
        part = tl.where(row < DOWN, 2, 0) + tl.where(column < RIGHT, 1, 0)
    return token, held, part


@triton.jit
def _keys(
    table,
    block_table,
    image,
    head,
    block,
    j,
    there,
    tokens,
    height,
    width,
    blocks,
    slots,
    by_image,
    by_head,
    OVERLAP: tl.constexpr,
    CHOSEN: tl.constexpr,
    TALL: tl.constexpr,
    WIDE: tl.constexpr,
    DOWN: tl.constexpr,
    RIGHT: tl.constexpr,
    HALO: tl.constexpr,
):
    """As `_tokens`, of the keys that a block sees."""
    if HALO:
        columns = tl.cdiv(width, WIDE)
        row = block // columns * TALL + j // (WIDE + 2 * HALO) - HALO
        column = block % columns * WIDE + j % (WIDE + 2 * HALO) - HALO
        token = row * width + column
        held = there & (row >= 0) & (row < height) & (column >= 0) & (column < width)
        part = token * 0
    else:
        if CHOSEN:
            seen = tl.load(block_table + (image * blocks + block) * CHOSEN + j // slots, mask=there, other=0)
            slot = j % slots
        else:
            # A slot beyond the block's is one of its sibling, which stands beside it.
            seen = block
            slot = j - OVERLAP * (block % 2)
        token, held, part = _tokens(table, image, head, seen, slot, there, tokens, height, width, by_image, by_head,
                                    slots, TALL, WIDE, DOWN, RIGHT)  # fmt: skip
    return token, held, part


@triton.jit
def _terms(
    distances,
    token,
    held,
    slot,
    heads,
    WIDE: tl.constexpr,
    SPAN: tl.constexpr,
    ROWS: tl.constexpr,
    TERMS: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """Where each query's terms stand, those of the rows of its keys before those of their columns, and which there are.

    A query one row further down is one row nearer to each key.
    """
    at = tl.arange(0, BLOCK_T)[None, :]
    of_row = SPAN // 2 + at - (slot // WIDE)[:, None]
    of_column = SPAN + SPAN // 2 + at - ROWS - (slot % WIDE)[:, None]
    place = token.to(tl.int64)[:, None] * (2 * heads * SPAN) + tl.where(at < ROWS, of_row, of_column)
    return distances + place, held[:, None] & (at < TERMS)


@triton.jit
def _of_keys(j, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_T: tl.constexpr, dtype: tl.constexpr):
    """Ones where a key stands in a row, and in a column, of its window: by these its terms are picked."""
    at = tl.arange(0, BLOCK_T)[:, None]
    return ((at == (j // COLUMNS)[None, :]) | (at == (ROWS + j % COLUMNS)[None, :])).to(tl.float32).to(dtype)


@triton.jit
def _rows(base, token, held, stride, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    """The numbers of each token, zeros where there is none."""
    at = tl.arange(0, BLOCK_D)
    mask = held[:, None]
    if WIDTH < BLOCK_D:
        mask = mask & (at < WIDTH)[None, :]
    return tl.load(base + token.to(tl.int64)[:, None] * stride + at[None, :], mask=mask, other=0.0)


@triton.jit
def _pair_of_rows(k_base, v_base, token, held, stride, pad_kv, head, heads, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    """Keys and values, with those of `pad_kv` where there is no token."""
    k = _rows(k_base, token, held, stride, WIDTH, BLOCK_D)
    v = _rows(v_base, token, held, stride, WIDTH, BLOCK_D)
    if pad_kv is not None:
        at = tl.arange(0, BLOCK_D)
        row = pad_kv + head * WIDTH + at
        k = tl.where(held[:, None], k, tl.load(row, mask=at < WIDTH, other=0.0)[None, :])
        v = tl.where(held[:, None], v, tl.load(row + heads * WIDTH, mask=at < WIDTH, other=0.0)[None, :])
    return k, v


@triton.jit
def _write(base, x, token, held, stride, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    at = tl.arange(0, BLOCK_D)
    mask = held[:, None]
    if WIDTH < BLOCK_D:
        mask = mask & (at < WIDTH)[None, :]
    tl.store(base + token.to(tl.int64)[:, None] * stride + at[None, :], x.to(base.dtype.element_ty), mask=mask)


@triton.jit
def _dot(a, b, PRECISION: tl.constexpr):
    if _WIDENED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def _pairs(i, j, head, SLOTS: tl.constexpr, KEYS: tl.constexpr, PAD: tl.constexpr):
    """Where the pairs of queries i and keys j stand in a `bias` that is padded to whole tiles."""
    ROWS: tl.constexpr = (SLOTS + PAD - 1) // PAD * PAD
    COLUMNS: tl.constexpr = (KEYS + PAD - 1) // PAD * PAD
    return head * (ROWS * COLUMNS) + i[:, None] * COLUMNS + j[None, :]


@triton.jit
def _scores(q, k, bias, at, seen, scale, WHOLE: tl.constexpr, PRECISION: tl.constexpr):
    """The scores to base 2, minus infinity where a key is not seen. WHOLE: all of `at` is inside the bias."""
    s = _dot(q, tl.trans(k), PRECISION) * (scale * LOG2E)
    if bias is not None:
        if WHOLE:
            s += tl.load(bias + at).to(tl.float32) * LOG2E
        else:
            s += tl.load(bias + at, mask=seen, other=0.0).to(tl.float32) * LOG2E
    return tl.where(seen, s, float("-inf"))


@triton.jit
def _seen(q_held, q_part, k_there, k_held, k_part, pad_kv, DOWN: tl.constexpr, RIGHT: tl.constexpr):
    if pad_kv is None:
        k_there = k_there & k_held
    seen = q_held[:, None] & k_there[None, :]
    if DOWN + RIGHT > 0:
        seen = seen & (q_part[:, None] == k_part[None, :])
    return seen


@triton.jit
def _softmax_of(tops, inverses, at, held):
    return tl.load(tops + at, mask=held, other=0.0), tl.load(inverses + at, mask=held, other=0.0)


@triton.jit
def _weights(s, top, inverse):
    """The weights again, none above one: a score that is made again may round to more than the largest."""
    return tl.exp2(tl.minimum(s - top[:, None], 0.0, propagate_nan=tl.PropagateNan.ALL)) * inverse[:, None]


@triton.jit
def attend(
    q_map, k_map, v_map, table, block_table, bias, pad_kv, distances, out, tops, inverses, scale,
    tokens, heads, blocks, slots, keys, height, width,
    q_by_image, q_by_token, q_by_head, by_image, by_token, by_head, table_by_image, table_by_head,
    SLOTS: tl.constexpr, KEYS: tl.constexpr, OVERLAP: tl.constexpr, CHOSEN: tl.constexpr,
    TALL: tl.constexpr, WIDE: tl.constexpr, DOWN: tl.constexpr, RIGHT: tl.constexpr, HALO: tl.constexpr,
    WIDTH: tl.constexpr, SPAN: tl.constexpr, TERMS: tl.constexpr, BLOCK_T: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PAD: tl.constexpr,
):  # fmt: skip
    """The results of a tile of queries, the largest score of each, and one over the sum of its weights."""
    if WIDE > 0:  # Known sizes take fewer registers.
        slots = TALL * WIDE
        keys = slots * CHOSEN if CHOSEN else (TALL + 2 * HALO) * (WIDE + 2 * HALO)
    head, tile, block, image = _program(heads, blocks, tl.cdiv(SLOTS, BLOCK_M))
    q_base = q_map + image * q_by_image + head * q_by_head
    k_base = k_map + image * by_image + head * by_head
    v_base = v_map + image * by_image + head * by_head

    i = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    token, held, part = _tokens(table, image, head, block, i, i < slots, tokens, height, width, table_by_image,
                                table_by_head, slots, TALL, WIDE, DOWN, RIGHT)  # fmt: skip
    q = _rows(q_base, token, held, q_by_token, WIDTH, BLOCK_D)
    if TERMS:
        at = (image * tokens * heads + head) * (2 * SPAN)
        t_at, t_there = _terms(distances + at, token, held, i, heads, WIDE, SPAN, TALL + 2 * HALO, TERMS, BLOCK_T)
        t = tl.load(t_at, mask=t_there, other=0.0)
    top = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    mix = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for start in range(0, KEYS, BLOCK_N):
        j = start + tl.arange(0, BLOCK_N)
        there = j < keys
        k_token, k_held, k_part = _keys(table, block_table, image, head, block, j, there, tokens, height, width, blocks,
                                        slots, table_by_image, table_by_head, OVERLAP, CHOSEN, TALL, WIDE, DOWN, RIGHT,
                                        HALO)  # fmt: skip
        k, v = _pair_of_rows(k_base, v_base, k_token, k_held, by_token, pad_kv, head, heads, WIDTH, BLOCK_D)
        seen = _seen(held, part, there, k_held, k_part, pad_kv, DOWN, RIGHT)
        pair = _pairs(i, j, head, SLOTS, KEYS, PAD)
        s = _scores(q, k, bias, pair, seen, scale, True, PRECISION)
        if TERMS:
            places = _of_keys(j, TALL + 2 * HALO, WIDE + 2 * HALO, BLOCK_T, t.dtype)
            s += _dot(t, places, PRECISION) * LOG2E
        highest = tl.maximum(top, tl.max(s, 1))
        # Until a query has seen a key, nothing is subtracted: infinities must not meet.
        level = tl.where(highest == float("-inf"), 0.0, highest)
        p = tl.exp2(s - level[:, None])
        fade = tl.exp2(top - level)
        total = total * fade + tl.sum(p, 1)
        mix = mix * fade[:, None] + _dot(p.to(v.dtype), v, PRECISION)
        top = highest
    total = tl.where(total > 0, total, 1.0)
    top = tl.where(top == float("-inf"), 0.0, top)
    at = (image * tokens * heads + head) * WIDTH
    _write(out + at, mix / total[:, None], token, held, heads * WIDTH, WIDTH, BLOCK_D)
    at = (image * heads + head) * tokens + token
    tl.store(tops + at, top, mask=held)
    tl.store(inverses + at, 1.0 / total, mask=held)


@triton.jit
def grad_queries(
    q_map, k_map, v_map, table, block_table, bias, pad_kv, distances, out, tops, inverses, grad, deltas, d_qkv,
    d_distances, scale,
    tokens, heads, blocks, slots, keys, height, width,
    q_by_image, q_by_token, q_by_head, by_image, by_token, by_head,
    grad_by_image, grad_by_token, grad_by_head, table_by_image, table_by_head,
    SLOTS: tl.constexpr, KEYS: tl.constexpr, OVERLAP: tl.constexpr, CHOSEN: tl.constexpr,
    TALL: tl.constexpr, WIDE: tl.constexpr, DOWN: tl.constexpr, RIGHT: tl.constexpr, HALO: tl.constexpr,
    WIDTH: tl.constexpr, SPAN: tl.constexpr, TERMS: tl.constexpr, BLOCK_T: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PAD: tl.constexpr,
):  # fmt: skip
    """The gradients of a tile of queries, and `deltas`: of each, the product of its result and the gradient of that."""
    if WIDE > 0:  # Known sizes take fewer registers.
        slots = TALL * WIDE
        keys = slots * CHOSEN if CHOSEN else (TALL + 2 * HALO) * (WIDE + 2 * HALO)
    head, tile, block, image = _program(heads, blocks, tl.cdiv(SLOTS, BLOCK_M))
    q_base = q_map + image * q_by_image + head * q_by_head
    k_base = k_map + image * by_image + head * by_head
    v_base = v_map + image * by_image + head * by_head

    i = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    token, held, part = _tokens(table, image, head, block, i, i < slots, tokens, height, width, table_by_image,
                                table_by_head, slots, TALL, WIDE, DOWN, RIGHT)  # fmt: skip
    q = _rows(q_base, token, held, q_by_token, WIDTH, BLOCK_D)
    if TERMS:
        at = (image * tokens * heads + head) * (2 * SPAN)
        t_at, t_there = _terms(distances + at, token, held, i, heads, WIDE, SPAN, TALL + 2 * HALO, TERMS, BLOCK_T)
        t = tl.load(t_at, mask=t_there, other=0.0)
        dt = tl.zeros((BLOCK_M, BLOCK_T), tl.float32)
    do = _rows(grad + image * grad_by_image + head * grad_by_head, token, held, grad_by_token, WIDTH, BLOCK_D)
    o = _rows(out + (image * tokens * heads + head) * WIDTH, token, held, heads * WIDTH, WIDTH, BLOCK_D)
    delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
    at = (image * heads + head) * tokens + token
    tl.store(deltas + at, delta, mask=held)
    top, inverse = _softmax_of(tops, inverses, at, held)
    dq = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for start in range(0, KEYS, BLOCK_N):
        j = start + tl.arange(0, BLOCK_N)
        there = j < keys
        k_token, k_held, k_part = _keys(table, block_table, image, head, block, j, there, tokens, height, width, blocks,
                                        slots, table_by_image, table_by_head, OVERLAP, CHOSEN, TALL, WIDE, DOWN, RIGHT,
                                        HALO)  # fmt: skip
        k, v = _pair_of_rows(k_base, v_base, k_token, k_held, by_token, pad_kv, head, heads, WIDTH, BLOCK_D)
        seen = _seen(held, part, there, k_held, k_part, pad_kv, DOWN, RIGHT)
        pair = _pairs(i, j, head, SLOTS, KEYS, PAD)
        s = _scores(q, k, bias, pair, seen, scale, True, PRECISION)
        if TERMS:
            places = _of_keys(j, TALL + 2 * HALO, WIDE + 2 * HALO, BLOCK_T, t.dtype)
            s += _dot(t, places, PRECISION) * LOG2E
        p = _weights(s, top, inverse)
        ds = p * (_dot(do, tl.trans(v), PRECISION) - delta[:, None])
        dq += _dot(ds.to(k.dtype), k, PRECISION)
        if TERMS:
            dt += _dot(ds.to(t.dtype), tl.trans(places), PRECISION)
    at = (image * tokens * 3 * heads + head) * WIDTH
    _write(d_qkv + at, dq * scale, token, held, 3 * heads * WIDTH, WIDTH, BLOCK_D)
    if TERMS:
        at = (image * tokens * heads + head) * (2 * SPAN)
        t_at, t_there = _terms(d_distances + at, token, held, i, heads, WIDE, SPAN, TALL + 2 * HALO, TERMS, BLOCK_T)
        tl.store(t_at, dt.to(d_distances.dtype.element_ty), mask=t_there)


@triton.jit
def grad_keys(
    q_map, k_map, v_map, table, seers, starts, bias, pad_kv, distances, tops, inverses, grad, deltas, grad_values,
    d_qkv, d_pad_kv, scale,
    tokens, heads, blocks, slots, keys, height, width,
    q_by_image, q_by_token, q_by_head, by_image, by_token, by_head,
    grad_by_image, grad_by_token, grad_by_head, table_by_image, table_by_head,
    SLOTS: tl.constexpr, KEYS: tl.constexpr, OVERLAP: tl.constexpr, CHOSEN: tl.constexpr,
    TALL: tl.constexpr, WIDE: tl.constexpr, DOWN: tl.constexpr, RIGHT: tl.constexpr, HALO: tl.constexpr,
    WIDTH: tl.constexpr, SPAN: tl.constexpr, TERMS: tl.constexpr, BLOCK_T: tl.constexpr, PRECISION: tl.constexpr,
    ALONE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, PAD: tl.constexpr,
):  # fmt: skip
    """The gradients of a tile of keys and values, from the queries of all blocks that see it.

    ALONE: a block sees itself only and is no larger than a tile. Then the gradients of its queries come along, with
    `deltas`, which are else read, and nothing is read twice.
    """
    if WIDE > 0:  # Known sizes take fewer registers.
        slots = TALL * WIDE
        keys = slots * CHOSEN if CHOSEN else (TALL + 2 * HALO) * (WIDE + 2 * HALO)
    head, tile, block, image = _program(heads, blocks, tl.cdiv(SLOTS, BLOCK_M))
    q_base = q_map + image * q_by_image + head * q_by_head
    k_base = k_map + image * by_image + head * by_head
    v_base = v_map + image * by_image + head * by_head
    d_base = d_qkv + (image * tokens * 3 * heads + head) * WIDTH
    slot = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    there = slot < slots
    token, held, part = _tokens(table, image, head, block, slot, there, tokens, height, width, table_by_image,
                                table_by_head, slots, TALL, WIDE, DOWN, RIGHT)  # fmt: skip
    k, v = _pair_of_rows(k_base, v_base, token, held, by_token, pad_kv, head, heads, WIDTH, BLOCK_D)
    dk = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    dv = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    first, last = 0, 1
    if OVERLAP:
        last = 2
    if HALO:  # from the blocks above to those below, and from left to right
        ABOVE: tl.constexpr = (HALO + TALL - 1) // TALL
        LEFT: tl.constexpr = (HALO + WIDE - 1) // WIDE
        last = (2 * ABOVE + 1) * (2 * LEFT + 1)
    if CHOSEN:
        first = tl.load(starts + image * (blocks + 1) + block).to(tl.int32)
        last = tl.load(starts + image * (blocks + 1) + block + 1).to(tl.int32)
    for seer in range(first, last):
        # Who sees these keys, and as which ones of its own.
        q_block, j, k_there = block, slot, there
        if CHOSEN:
            code = tl.load(seers + image * blocks * CHOSEN + seer).to(tl.int32)
            q_block, j = code // CHOSEN, code % CHOSEN * slots + slot
        if OVERLAP:
            q_block = block ^ seer
            j = (block - q_block) * slots + slot + OVERLAP * (q_block % 2)
            k_there = there & (j >= 0) & (j < keys)
        exists = True
        if HALO:
            down, right = seer // (2 * LEFT + 1) - ABOVE, seer % (2 * LEFT + 1) - LEFT
            columns = tl.cdiv(width, WIDE)
            q_row, q_column = block // columns + down, block % columns + right
            exists = (q_row >= 0) & (q_row < tl.cdiv(height, TALL)) & (q_column >= 0) & (q_column < columns)
            q_block = q_row * columns + q_column
            k_row, k_column = slot // WIDE - down * TALL + HALO, slot % WIDE - right * WIDE + HALO
            j = k_row * (WIDE + 2 * HALO) + k_column
            k_there = there & (k_row >= 0) & (k_row < TALL + 2 * HALO)
            k_there = k_there & (k_column >= 0) & (k_column < WIDE + 2 * HALO)
        for start in range(0, SLOTS, BLOCK_M):
            i = start + tl.arange(0, BLOCK_M)
            q_token, q_held, q_part = _tokens(table, image, head, q_block, i, (i < slots) & exists, tokens, height,
                                              width, table_by_image, table_by_head, slots, TALL, WIDE, DOWN,
                                              RIGHT)  # fmt: skip
            q = _rows(q_base, q_token, q_held, q_by_token, WIDTH, BLOCK_D)
            do_base = grad + image * grad_by_image + head * grad_by_head
            do = _rows(do_base, q_token, q_held, grad_by_token, WIDTH, BLOCK_D)
            at = (image * heads + head) * tokens + q_token
            seen = _seen(q_held, q_part, k_there, held, part, pad_kv, DOWN, RIGHT)
            pair = _pairs(i, j, head, SLOTS, KEYS, PAD)
            s = _scores(q, k, bias, pair, seen, scale, CHOSEN + OVERLAP == 0, PRECISION)
            if TERMS:
                t_at = distances + (image * tokens * heads + head) * (2 * SPAN)
                t_at, t_there = _terms(t_at, q_token, q_held, i, heads, WIDE, SPAN, TALL + 2 * HALO, TERMS, BLOCK_T)
                t = tl.load(t_at, mask=t_there, other=0.0)
                places = _of_keys(j, TALL + 2 * HALO, WIDE + 2 * HALO, BLOCK_T, t.dtype)
                s += _dot(t, places, PRECISION) * LOG2E
            # In this order all fit the registers.
            dp = _dot(do, tl.trans(v), PRECISION)
            top, inverse = _softmax_of(tops, inverses, at, q_held)
            p = _weights(s, top, inverse)
            dv += _dot(tl.trans(p.to(do.dtype)), do, PRECISION)
            if ALONE:
                delta = tl.sum(p * dp, 1)
                if deltas is not None:
                    tl.store(deltas + at, delta, mask=q_held)
            else:
                delta = tl.load(deltas + at, mask=q_held, other=0.0)
            ds = p * (dp - delta[:, None])
            dk += _dot(tl.trans(ds.to(q.dtype)), q, PRECISION)
            if ALONE:
                dq = _dot(ds.to(k.dtype), k, PRECISION)
                _write(d_base, dq * scale, q_token, q_held, 3 * heads * WIDTH, WIDTH, BLOCK_D)
    dk *= scale
    if d_pad_kv is not None:
        empty = (there & (held == 0))[:, None]
        at = tl.arange(0, BLOCK_D)
        to = d_pad_kv + (((image * blocks + block) * tl.cdiv(SLOTS, BLOCK_M) + tile) * 2 * heads + head) * WIDTH + at
        tl.store(to, tl.sum(tl.where(empty, dk, 0.0), 0), mask=at < WIDTH)
        tl.store(to + heads * WIDTH, tl.sum(tl.where(empty, dv, 0.0), 0), mask=at < WIDTH)
    if grad_values is not None:
        values = grad_values + (image * tokens * heads + head) * WIDTH
        dv += _rows(values, token, held, heads * WIDTH, WIDTH, BLOCK_D)
    _write(d_base + heads * WIDTH, dk, token, held, 3 * heads * WIDTH, WIDTH, BLOCK_D)
    _write(d_base + 2 * heads * WIDTH, dv, token, held, 3 * heads * WIDTH, WIDTH, BLOCK_D)


@triton.jit
def grad_bias(
    q_map, k_map, v_map, table, block_table, bias, pad_kv, tops, inverses, grad, deltas, d_bias, scale,
    tokens, heads, blocks, slots, keys, height, width, units,
    per_program,
    q_by_image, q_by_token, q_by_head, by_image, by_token, by_head,
    grad_by_image, grad_by_token, grad_by_head, table_by_image, table_by_head,
    SLOTS: tl.constexpr, KEYS: tl.constexpr, OVERLAP: tl.constexpr, CHOSEN: tl.constexpr,
    TALL: tl.constexpr, WIDE: tl.constexpr, DOWN: tl.constexpr, RIGHT: tl.constexpr, HALO: tl.constexpr,
    WIDTH: tl.constexpr, SPAN: tl.constexpr, TERMS: tl.constexpr, BLOCK_T: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PAD: tl.constexpr,
):  # fmt: skip
    """The gradients of a tile of the bias, added over `per_program` blocks."""
    if WIDE > 0:  # Known sizes take fewer registers.
        slots = TALL * WIDE
        keys = slots * CHOSEN if CHOSEN else (TALL + 2 * HALO) * (WIDE + 2 * HALO)
    number = tl.program_id(0)
    head = number % heads
    number = number // heads
    i = number % tl.cdiv(SLOTS, BLOCK_M) * BLOCK_M + tl.arange(0, BLOCK_M)
    number = number // tl.cdiv(SLOTS, BLOCK_M)
    j = number % tl.cdiv(KEYS, BLOCK_N) * BLOCK_N + tl.arange(0, BLOCK_N)
    chunk = number // tl.cdiv(KEYS, BLOCK_N)
    bias_sum = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for unit in range(chunk * per_program, tl.minimum(chunk * per_program + per_program, units)):
        block = unit % blocks
        image = (unit // blocks).to(tl.int64)
        q_base = q_map + image * q_by_image + head * q_by_head
        k_base = k_map + image * by_image + head * by_head
        v_base = v_map + image * by_image + head * by_head
        token, held, part = _tokens(table, image, head, block, i, i < slots, tokens, height, width, table_by_image,
                                    table_by_head, slots, TALL, WIDE, DOWN, RIGHT)  # fmt: skip
        q = _rows(q_base, token, held, q_by_token, WIDTH, BLOCK_D)
        do = _rows(grad + image * grad_by_image + head * grad_by_head, token, held, grad_by_token, WIDTH, BLOCK_D)
        at = (image * heads + head) * tokens + token
        top, inverse = _softmax_of(tops, inverses, at, held)
        delta = tl.load(deltas + at, mask=held, other=0.0)
        there = j < keys
        k_token, k_held, k_part = _keys(table, block_table, image, head, block, j, there, tokens, height, width, blocks,
                                        slots, table_by_image, table_by_head, OVERLAP, CHOSEN, TALL, WIDE, DOWN, RIGHT,
                                        HALO)  # fmt: skip
        k, v = _pair_of_rows(k_base, v_base, k_token, k_held, by_token, pad_kv, head, heads, WIDTH, BLOCK_D)
        seen = _seen(held, part, there, k_held, k_part, pad_kv, DOWN, RIGHT)
        pair = _pairs(i, j, head, SLOTS, KEYS, PAD)
        s = _scores(q, k, bias, pair, seen, scale, True, PRECISION)
        p = _weights(s, top, inverse)
        bias_sum += p * (_dot(do, tl.trans(v), PRECISION) - delta[:, None])
    pair = _pairs(i, j, (chunk * heads + head).to(tl.int64), SLOTS, KEYS, PAD)
    tl.store(d_bias + pair, bias_sum)
