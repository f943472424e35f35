"""Kernels of balanced bisection: a program takes one run of tokens, and compares them or sorts them on the chip."""

import triton
import triton.language as tl

__all__ = ["scores_kernel", "splitting_kernel"]


@triton.jit
def _some_tokens(
    q, order, first, tokens, run, q_token, D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr
):  # fmt: skip
    """Places in the run, the numbers of the tokens there, and these in float32; empty slots are zeros."""
    place = first + tl.arange(0, BLOCK_N)
    number = place
    if order is not None:
        number = tl.load(order + place, mask=place < run, other=tokens)
    held = (place < run) & (number < tokens)
    columns = tl.arange(0, BLOCK_D)
    at = q + number.to(tl.int64)[:, None] * q_token + columns[None, :]
    x = tl.load(at, mask=held[:, None] & (columns < D)[None, :], other=0.0).to(tl.float32)
    return place, number, x


@triton.jit
def _normalised(x):
    return x / tl.maximum(tl.sqrt(tl.sum(x * x, 0)), 1e-12)


@triton.jit
def _inverse_norms(x):
    return 1.0 / tl.maximum(tl.sqrt(tl.sum(x * x, 1)), 1e-12)


@triton.jit
def scores_kernel(
    q,
    order,
    scores,
    tokens,
    run,
    level,
    heads,
    q_image,
    q_head,
    q_token,
    temperature,
    ITERATIONS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """How much nearer the first of two centroids each token of a run is than the second."""
    row = tl.program_id(0) >> level
    q += (row // heads).to(tl.int64) * q_image + (row % heads).to(tl.int64) * q_head
    scores += tl.program_id(0).to(tl.int64) * run
    if order is not None:
        order += tl.program_id(0).to(tl.int64) * run
    # Cosines ask for directions only: sums serve as means.
    one, two = tl.zeros([BLOCK_D], tl.float32), tl.zeros([BLOCK_D], tl.float32)
    for first in range(0, run, BLOCK_N):
        place, _number, x = _some_tokens(q, order, first, tokens, run, q_token, D, BLOCK_N, BLOCK_D)
        upper = (place < run // 2)[:, None]
        one += tl.sum(tl.where(upper, x, 0.0), 0)
        two += tl.sum(tl.where(upper, 0.0, x), 0)
    for _ in range(ITERATIONS):
        across = _normalised(one) - _normalised(two)
        one, two = tl.zeros([BLOCK_D], tl.float32), tl.zeros([BLOCK_D], tl.float32)
        for first in range(0, run, BLOCK_N):
            _place, _number, x = _some_tokens(q, order, first, tokens, run, q_token, D, BLOCK_N, BLOCK_D)
            nearer = tl.sum(x * across[None, :], 1) * (temperature * _inverse_norms(x))
            one += tl.sum(x * tl.sigmoid(nearer)[:, None], 0)
            two += tl.sum(x * tl.sigmoid(-nearer)[:, None], 0)
    one, two = _normalised(one), _normalised(two)
    for first in range(0, run, BLOCK_N):
        place, number, x = _some_tokens(q, order, first, tokens, run, q_token, D, BLOCK_N, BLOCK_D)
        inverse_norm = _inverse_norms(x)
        near = 1.0 + tl.sum(x * one[None, :], 1) * inverse_norm
        far = 1.0 + tl.sum(x * two[None, :], 1) * inverse_norm
        # Bit by bit the number of an empty slot leads it to a cluster of its own.
        side = tl.where(((number - tokens) >> level) % 2 == 0, float("-inf"), float("inf"))
        score = tl.where(number < tokens, near / tl.maximum(far, 1.1754943508222875e-38), side)
        tl.store(scores + place, score, mask=place < run)


@triton.jit
def splitting_kernel(scores, order, out, run, BLOCK: tl.constexpr):
    """The numbers of a run's tokens in the order of their scores; ties keep theirs."""
    scores += tl.program_id(0).to(tl.int64) * run
    out += tl.program_id(0).to(tl.int64) * run
    place = tl.arange(0, BLOCK)
    inside = place < run
    score = tl.load(scores + place, mask=inside, other=0.0)
    # The bits of numbers, as integers, are in the order of the numbers, of negative ones in reverse; NaN comes last.
    bits = tl.where(score == 0.0, 0.0, score).to(tl.int32, bitcast=True)
    bits = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    bits = tl.where(score == score, bits, 0x7FFFFFFF)
    key = (bits.to(tl.int64) << 32) | place.to(tl.int64)
    key = tl.sort(tl.where(inside, key, 0x7FFFFFFFFFFFFFFF))
    number = (key & 0xFFFFFFFF).to(tl.int32)
    if order is not None:
        number = tl.load(order + tl.program_id(0).to(tl.int64) * run + number, mask=inside, other=0)
    tl.store(out + place, number.to(out.dtype.element_ty), mask=inside)
