"""Kernels of focused attention, backward: gradients of what made the features of queries and keys, and of values."""

import triton
import triton.language as tl

from ._depthwise import convolved
from ._focus import EPS, chunk, dot, feature, focus_backward, lengths, operand
from ._focused_forward import means_of

__all__ = ["keys_backward_kernel", "queries_backward_kernel"]


@triton.jit
def _query_of_head(
    q, grad, factor, kv, mean, head, rows, valid, q_token, grad_token, largest, length, power_length,
    D: tl.constexpr, C: tl.constexpr, POWER: tl.constexpr, PRECISION: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The gradient of the features, what they are made of, and of each token z and what it passes on."""
    columns = head * D + tl.arange(0, BLOCK_D)
    within = tl.arange(0, BLOCK_D) < D
    t, opened, y = chunk(q, None, factor, rows, valid, columns, within, q_token, C)
    features = operand(feature(y, largest, length, power_length, POWER), PRECISION).to(tl.float32)
    some_kv, some_mean = means_of(kv, mean, head, D, BLOCK_D)
    z = 1.0 / (tl.sum(features * some_mean[None, :], 1) + EPS)
    inside = valid[:, None] & within[None, :]
    some_grad = tl.load(grad + rows[:, None] * grad_token + columns[None, :], mask=inside, other=0.0)
    # Where all keys are alike, what comes from the products and what comes from z is nearly the same.
    from_out = dot(some_grad, tl.trans(some_kv), PRECISION, True)
    from_z = tl.sum(features * from_out, 1) * z * z
    return from_out * z[:, None] - from_z[:, None] * some_mean[None, :], features, t, opened, y, z, from_z


@triton.jit
def _store_gradients(
    grad, features, t, opened, y, along, factor, x_grad, factor_grad, head, rows, valid, x_grad_token, largest, length,
    power_length, D: tl.constexpr, POWER: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    columns = head * D + tl.arange(0, BLOCK_D)
    within = tl.arange(0, BLOCK_D) < D
    some_factor = tl.load(factor + columns, mask=within, other=0.0)
    grad, of_factor = focus_backward(
        grad, t, opened, y, features, along, some_factor, valid, largest, length, power_length, POWER
    )
    at = x_grad + rows[:, None] * x_grad_token + columns[None, :]
    tl.store(at, grad.to(x_grad.dtype.element_ty), mask=valid[:, None] & within[None, :])
    tl.store(factor_grad + columns, of_factor, mask=within)


@triton.jit
def queries_backward_kernel(
    q,
    grad,
    factor,
    kv,
    mean,
    q_grad,
    factor_grad,
    z,
    from_z,
    tokens,
    q_image,
    q_token,
    grad_image,
    grad_token,
    q_grad_image,
    q_grad_token,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    POWER: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    C: tl.constexpr = HEADS * D
    tiles = tl.cdiv(tokens, BLOCK_N)
    image = (tl.program_id(0) // tiles).to(tl.int64)
    first = tl.program_id(0) % tiles * BLOCK_N
    rows = tl.arange(0, BLOCK_N)
    q += image * q_image + first.to(tl.int64) * q_token
    grad += image * grad_image + first.to(tl.int64) * grad_token
    kv += image * C * D
    mean += image * C
    q_grad += image * q_grad_image + first.to(tl.int64) * q_grad_token
    factor_grad += tl.program_id(0).to(tl.int64) * C
    z += (image * tokens + first) * HEADS
    from_z += (image * tokens + first) * HEADS
    valid = first + rows < tokens
    largest, length, power_length = lengths(q, None, factor, rows, valid, q_token, C, C, POWER, BLOCK_N, BLOCK_C)
    along = tl.zeros([BLOCK_N], tl.float32)
    for head in range(HEADS):
        some_grad, features, t, opened, y, some_z, some_from_z = _query_of_head(
            q, grad, factor, kv, mean, head, rows, valid, q_token, grad_token, largest, length, power_length,
            D, C, POWER, PRECISION, BLOCK_D,
        )  # fmt: skip
        tl.store(z + rows * HEADS + head, some_z, mask=valid)
        tl.store(from_z + rows * HEADS + head, some_from_z, mask=valid)
        # The product of the features with their gradient, all but the 1e-6 of which cancels.
        along += EPS * some_from_z
        if HEADS == 1:
            _store_gradients(
                some_grad, features, t, opened, y, along / length / length, factor, q_grad, factor_grad, head, rows,
                valid, q_grad_token, largest, length, power_length, D, POWER, BLOCK_D,
            )  # fmt: skip
    if HEADS > 1:
        along = along / length / length
        for head in range(HEADS):
            some_grad, features, t, opened, y, some_z, some_from_z = _query_of_head(
                q, grad, factor, kv, mean, head, rows, valid, q_token, grad_token, largest, length, power_length,
                D, C, POWER, PRECISION, BLOCK_D,
            )  # fmt: skip
            _store_gradients(
                some_grad, features, t, opened, y, along, factor, q_grad, factor_grad, head, rows,
                valid, q_grad_token, largest, length, power_length, D, POWER, BLOCK_D,
            )  # fmt: skip


@triton.jit
def _key_of_head(
    k, v, positions, factor, kv_grad, mean_grad, head, rows, valid, k_token, v_token, largest, length, power_length,
    D: tl.constexpr, C: tl.constexpr, POWER: tl.constexpr, PRECISION: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The gradient of the features, what they are made of, and the gradient of the products."""
    columns = head * D + tl.arange(0, BLOCK_D)
    within = tl.arange(0, BLOCK_D) < D
    t, opened, y = chunk(k, positions, factor, rows, valid, columns, within, k_token, C)
    features = operand(feature(y, largest, length, power_length, POWER), PRECISION).to(tl.float32)
    some_kv, some_mean = means_of(kv_grad, mean_grad, head, D, BLOCK_D)
    inside = valid[:, None] & within[None, :]
    some_v = tl.load(v + rows[:, None] * v_token + columns[None, :], mask=inside, other=0.0)
    # The common part of all values cancels.
    grad = dot(some_v, tl.trans(some_kv), PRECISION, True) + some_mean[None, :]
    return grad, features, t, opened, y, some_kv


@triton.jit
def keys_backward_kernel(
    k,
    v,
    positions,
    grad,
    factor,
    kv_grad,
    mean_grad,
    weight,
    k_grad,
    v_grad,
    factor_grad,
    tokens,
    width,
    k_image,
    k_token,
    v_image,
    v_token,
    grad_image,
    grad_token,
    k_grad_image,
    k_grad_token,
    v_grad_image,
    v_grad_token,
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
    tiles = tl.cdiv(tokens, BLOCK_N)
    image = (tl.program_id(0) // tiles).to(tl.int64)
    first = tl.program_id(0) % tiles * BLOCK_N
    rows = tl.arange(0, BLOCK_N)
    k += image * k_image + first.to(tl.int64) * k_token
    v += image * v_image + first.to(tl.int64) * v_token
    if positions is not None:
        positions += first.to(tl.int64) * C
    grad += image * grad_image
    kv_grad += image * C * D
    mean_grad += image * C
    k_grad += image * k_grad_image + first.to(tl.int64) * k_grad_token
    v_grad += image * v_grad_image + first.to(tl.int64) * v_grad_token
    factor_grad += tl.program_id(0).to(tl.int64) * C
    valid = first + rows < tokens
    largest, length, power_length = lengths(k, positions, factor, rows, valid, k_token, C, C, POWER, BLOCK_N, BLOCK_C)
    along = tl.zeros([BLOCK_N], tl.float32)
    for head in range(HEADS):
        some_grad, features, t, opened, y, some_kv = _key_of_head(
            k, v, positions, factor, kv_grad, mean_grad, head, rows, valid, k_token, v_token, largest, length,
            power_length, D, C, POWER, PRECISION, BLOCK_D,
        )  # fmt: skip
        along += tl.sum(some_grad * features, 1)
        if HEADS == 1:
            _store_gradients(
                some_grad, features, t, opened, y, along / length / length, factor, k_grad, factor_grad, head, rows,
                valid, k_grad_token, largest, length, power_length, D, POWER, BLOCK_D,
            )  # fmt: skip
        columns = head * D + tl.arange(0, BLOCK_D)
        within = tl.arange(0, BLOCK_D) < D
        result = dot(features, some_kv, PRECISION)
        if weight is not None:
            result += convolved(
                grad, weight, first, rows, valid, columns, within, grad_token, tokens, width, SIDE, True, BLOCK_N,
                BLOCK_D,
            )  # fmt: skip
        at = v_grad + rows[:, None] * v_grad_token + columns[None, :]
        tl.store(at, result.to(v_grad.dtype.element_ty), mask=valid[:, None] & within[None, :])
    if HEADS > 1:
        along = along / length / length
        for head in range(HEADS):
            some_grad, features, t, opened, y, some_kv = _key_of_head(
                k, v, positions, factor, kv_grad, mean_grad, head, rows, valid, k_token, v_token, largest, length,
                power_length, D, C, POWER, PRECISION, BLOCK_D,
            )  # fmt: skip
            _store_gradients(
                some_grad, features, t, opened, y, along, factor, k_grad, factor_grad, head, rows,
                valid, k_grad_token, largest, length, power_length, D, POWER, BLOCK_D,
            )  # fmt: skip
