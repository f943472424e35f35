"""Features of focused attention inside kernels, for tiles of tokens; all numbers in float32."""

import torch
import triton
import triton.language as tl

__all__ = ["EPS", "chunk", "dot", "feature", "focus_backward", "lengths", "operand", "power_of", "precision"]

EPS = tl.constexpr(1e-6)


def precision(dtype: torch.dtype) -> str:
    """That of `dot` for tensors of this type."""
    if dtype == torch.bfloat16:
        return "bf16"
    if dtype == torch.float16:
        # What float16 holds, tf32 holds too, and features have a range that float16 has not.
        return "tf32"
    return "tf32x3" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


@triton.jit
def operand(x, PRECISION: tl.constexpr):
    """What `dot` makes of x: bfloat16 for the precision of that name, float32 else."""
    return x.to(tl.bfloat16 if PRECISION == "bf16" else tl.float32)


@triton.jit
def dot(a, b, PRECISION: tl.constexpr, FINE: tl.constexpr = False):
    """`a @ b` in float32.

    PRECISION is `bf16` or one that Triton knows. FINE keeps what b has beyond it, where large terms cancel.
    """
    high = operand(b, PRECISION)
    if FINE and PRECISION == "tf32":
        result = tl.dot(operand(a, PRECISION), high, input_precision="tf32x3")
    elif PRECISION == "bf16":
        result = tl.dot(operand(a, PRECISION), high)
        if FINE:
            result = tl.dot(operand(a, PRECISION), operand(b - high.to(tl.float32), PRECISION), result)
    else:
        result = tl.dot(operand(a, PRECISION), high, input_precision=PRECISION)
    return result


@triton.jit
def power_of(t, POWER: tl.constexpr):
    result = t
    for _ in tl.static_range(POWER - 1):
        result *= t
    return result


@triton.jit
def chunk(x, positions, factor, rows, valid, columns, within, x_token, position_token):
    """`x + positions`, its open part `relu(.) + 1e-6`, and that times the factor, zero in columns outside."""
    inside = valid[:, None] & within[None, :]
    t = tl.load(x + rows[:, None] * x_token + columns[None, :], mask=inside, other=0.0).to(tl.float32)
    if positions is not None:
        at = positions + rows[:, None] * position_token + columns[None, :]
        t += tl.load(at, mask=inside, other=0.0).to(tl.float32)
    opened = tl.where(t < 0, 0.0, t) + EPS  # NaN stays
    return t, opened, opened * tl.load(factor + columns, mask=within, other=0.0)[None, :]


@triton.jit
def lengths(
    x,
    positions,
    factor,
    rows,
    valid,
    x_token,
    position_token,
    C: tl.constexpr,
    POWER: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Of each token's y: the largest number, the length, and the length of `(y / largest)^p`, which is at least 1."""
    largest = tl.zeros([BLOCK_N], tl.float32)
    squares = tl.zeros([BLOCK_N], tl.float32)
    powers = tl.zeros([BLOCK_N], tl.float32)
    for start in range(0, C, BLOCK_C):
        columns = start + tl.arange(0, BLOCK_C)
        _, _, y = chunk(x, positions, factor, rows, valid, columns, columns < C, x_token, position_token)
        top = tl.maximum(largest, tl.max(y, 1))
        shrink = largest / top
        ratio = y * (1.0 / top)[:, None]
        squares = squares * shrink * shrink + tl.sum(ratio * ratio, 1)
        powers = powers * power_of(shrink, 2 * POWER) + tl.sum(power_of(ratio, 2 * POWER), 1)
        largest = top
    return largest, largest * tl.sqrt(squares), tl.sqrt(powers)


@triton.jit
def feature(y, largest, length, power_length, POWER: tl.constexpr):
    return power_of(y * (1.0 / largest)[:, None], POWER) * (length / power_length)[:, None]


@triton.jit
def focus_backward(
    grad, t, opened, y, features, along, factor, valid, largest, length, power_length, POWER: tl.constexpr
):
    """The gradients of x, and of the factor as the sum over the rows, from that of the features.

    Args:
        grad: Of the features, `(rows, columns)`.
        along: Its product with the features over all channels, divided by the square of their length.
    """
    sideways = (grad - features * along[:, None]) * (POWER * length / (largest * power_length))[:, None]
    if POWER > 1:
        sideways *= power_of(y * (1.0 / largest)[:, None], POWER - 1)
    grad = sideways + y * along[:, None]
    return tl.where(t > 0, grad * factor[None, :], 0.0), tl.sum(tl.where(valid[:, None], grad * opened, 0.0), 0)
