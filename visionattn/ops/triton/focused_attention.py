"""Kernels of focused attention: the keys meet the values first, and nothing of the features is kept.

The features need the length of a token over all heads, so that a block of threads owns tokens with all their channels.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch.nn import functional as F

from ._depthwise import convolved, depthwise_weight_gradients
from ._focus import EPS, chunk, dot, feature, focus_backward, lengths, operand
from ._register import register, wrap_triton

__all__ = ["focused_attention"]


def focused_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: torch.Tensor,
    positions: torch.Tensor | None = None,
    *,
    num_heads: int,
    focusing_factor: int = 3,
    quadratic: bool | None = None,
    convolution: tuple[torch.Tensor, torch.Tensor] | None = None,
    grid: tuple[int, int] | None = None,
) -> torch.Tensor:
    """As `visionattn.ops.focused_attention`."""
    factor = F.softplus(scale.float()).reciprocal()
    weight, bias = (None, None) if convolution is None else (t.contiguous() for t in convolution)
    if positions is not None:
        positions = positions.contiguous()
    width = q.size(1) if grid is None else grid[1]
    return focused_linear_attention(q, k, v, positions, factor, weight, bias, width, num_heads, focusing_factor)[0]


@triton.jit
def _means_kernel(
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
        _, _, y = chunk(x, positions, factor, rows, valid, columns, within, x_token, C)
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
def _means_of(kv, mean, head, D: tl.constexpr, BLOCK_D: tl.constexpr):
    at = tl.arange(0, BLOCK_D)
    within = at < D
    inside = within[:, None] & within[None, :]
    product = tl.load(kv + (head * D + at)[:, None] * D + at[None, :], mask=inside, other=0.0)
    return product, tl.load(mean + head * D + at, mask=within, other=0.0)


@triton.jit
def _result_kernel(
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
    for _ in range(run):
        valid = first + rows < tokens
        largest, length, power_length = lengths(q, None, factor, rows, valid, q_token, C, C, POWER, BLOCK_N, BLOCK_C)
        for head in range(HEADS):
            columns = head * D + tl.arange(0, BLOCK_D)
            within = tl.arange(0, BLOCK_D) < D
            _, _, y = chunk(q, None, factor, rows, valid, columns, within, q_token, C)
            features = operand(feature(y, largest, length, power_length, POWER), PRECISION)
            some_kv, some_mean = _means_of(kv, mean, head, D, BLOCK_D)
            weights = tl.sum(features.to(tl.float32) * some_mean[None, :], 1)
            result = dot(features, some_kv, PRECISION) * (1.0 / (weights + EPS))[:, None]
            if weight is not None:
                result += convolved(
                    v,
                    weight,
                    first,
                    rows,
                    valid,
                    columns,
                    within,
                    v_token,
                    tokens,
                    width,
                    SIDE,
                    False,
                    BLOCK_N,
                    BLOCK_D,
                )
                result += tl.load(bias + columns, mask=within, other=0.0).to(tl.float32)[None, :]
            at = out + rows[:, None] * C + columns[None, :]
            tl.store(at, result.to(out.dtype.element_ty), mask=valid[:, None] & within[None, :])
        first += BLOCK_N
        q += BLOCK_N * q_token
        out += BLOCK_N * C


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
    some_kv, some_mean = _means_of(kv, mean, head, D, BLOCK_D)
    inside = valid[:, None] & within[None, :]
    some_grad = tl.load(grad + rows[:, None] * grad_token + columns[None, :], mask=inside, other=0.0)
    # Where all keys are alike, what comes from the products and what comes from z is nearly the same.
    from_out = dot(some_grad, tl.trans(some_kv), PRECISION, True)
    z = 1.0 / (tl.sum(features * some_mean[None, :], 1) + EPS)
    from_z = tl.sum(features * from_out, 1) * z * z
    return from_out * z[:, None] - from_z[:, None] * some_mean[None, :], features, t, opened, y, z, from_z


@triton.jit
def _store_gradients(
    grad, features, t, opened, y, along, factor, x_grad, factor_grad, head, rows, valid, largest, length, power_length,
    D: tl.constexpr, C: tl.constexpr, POWER: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    columns = head * D + tl.arange(0, BLOCK_D)
    within = tl.arange(0, BLOCK_D) < D
    some_factor = tl.load(factor + columns, mask=within, other=0.0)
    grad, of_factor = focus_backward(
        grad, t, opened, y, features, along, some_factor, valid, largest, length, power_length, POWER
    )
    at = x_grad + rows[:, None] * C + columns[None, :]
    tl.store(at, grad.to(x_grad.dtype.element_ty), mask=valid[:, None] & within[None, :])
    tl.store(factor_grad + columns, of_factor, mask=within)


@triton.jit
def _queries_backward_kernel(
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
    run,
    q_image,
    q_token,
    grad_image,
    grad_token,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    POWER: tl.constexpr,
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
    grad += image * grad_image + first.to(tl.int64) * grad_token
    kv += image * C * D
    mean += image * C
    q_grad += (image * tokens + first) * C
    factor_grad += tl.program_id(0).to(tl.int64) * run * C
    z += (image * tokens + first) * HEADS
    from_z += (image * tokens + first) * HEADS
    for _ in range(run):
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
                    valid, largest, length, power_length, D, C, POWER, BLOCK_D,
                )  # fmt: skip
        if HEADS > 1:
            along = along / length / length
            for head in range(HEADS):
                some_grad, features, t, opened, y, _, _ = _query_of_head(
                    q, grad, factor, kv, mean, head, rows, valid, q_token, grad_token, largest, length, power_length,
                    D, C, POWER, PRECISION, BLOCK_D,
                )  # fmt: skip
                _store_gradients(
                    some_grad, features, t, opened, y, along, factor, q_grad, factor_grad, head, rows,
                    valid, largest, length, power_length, D, C, POWER, BLOCK_D,
                )  # fmt: skip
        first += BLOCK_N
        q += BLOCK_N * q_token
        grad += BLOCK_N * grad_token
        q_grad += BLOCK_N * C
        factor_grad += C
        z += BLOCK_N * HEADS
        from_z += BLOCK_N * HEADS


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
    some_kv, some_mean = _means_of(kv_grad, mean_grad, head, D, BLOCK_D)
    inside = valid[:, None] & within[None, :]
    some_v = tl.load(v + rows[:, None] * v_token + columns[None, :], mask=inside, other=0.0)
    # The common part of all values cancels.
    grad = dot(some_v, tl.trans(some_kv), PRECISION, True) + some_mean[None, :]
    return grad, features, t, opened, y, some_kv


@triton.jit
def _keys_backward_kernel(
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
    run,
    width,
    k_image,
    k_token,
    v_image,
    v_token,
    grad_image,
    grad_token,
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
    k += image * k_image + first.to(tl.int64) * k_token
    v += image * v_image + first.to(tl.int64) * v_token
    if positions is not None:
        positions += first.to(tl.int64) * C
    grad += image * grad_image
    kv_grad += image * C * D
    mean_grad += image * C
    k_grad += (image * tokens + first) * C
    v_grad += (image * tokens + first) * C
    factor_grad += tl.program_id(0).to(tl.int64) * run * C
    for _ in range(run):
        valid = first + rows < tokens
        largest, length, power_length = lengths(
            k, positions, factor, rows, valid, k_token, C, C, POWER, BLOCK_N, BLOCK_C
        )
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
                    valid, largest, length, power_length, D, C, POWER, BLOCK_D,
                )  # fmt: skip
            columns = head * D + tl.arange(0, BLOCK_D)
            within = tl.arange(0, BLOCK_D) < D
            result = dot(features, some_kv, PRECISION)
            if weight is not None:
                result += convolved(
                    grad, weight, first, rows, valid, columns, within, grad_token, tokens, width, SIDE, True, BLOCK_N,
                    BLOCK_D,
                )  # fmt: skip
            at = v_grad + rows[:, None] * C + columns[None, :]
            tl.store(at, result.to(v_grad.dtype.element_ty), mask=valid[:, None] & within[None, :])
        if HEADS > 1:
            along = along / length / length
            for head in range(HEADS):
                some_grad, features, t, opened, y, _ = _key_of_head(
                    k, v, positions, factor, kv_grad, mean_grad, head, rows, valid, k_token, v_token, largest, length,
                    power_length, D, C, POWER, PRECISION, BLOCK_D,
                )  # fmt: skip
                _store_gradients(
                    some_grad, features, t, opened, y, along, factor, k_grad, factor_grad, head, rows,
                    valid, largest, length, power_length, D, C, POWER, BLOCK_D,
                )  # fmt: skip
        first += BLOCK_N
        k += BLOCK_N * k_token
        v += BLOCK_N * v_token
        if positions is not None:
            positions += BLOCK_N * C
        k_grad += BLOCK_N * C
        v_grad += BLOCK_N * C
        factor_grad += C


def _precision(dtype: torch.dtype) -> str:
    if dtype == torch.bfloat16:
        return "bf16"
    if dtype == torch.float16:
        # Features have a range that float16 has not.
        return "tf32"
    wish = torch.backends.cuda.matmul.fp32_precision
    return "tf32x3" if wish == "tf32" else "ieee"


def _shapes(t: torch.Tensor, heads: int, power: int) -> dict[str, Any]:
    """The constants of a kernel that owns tiles of tokens."""
    side = t.size(2) // heads
    return {
        "HEADS": heads,
        "D": side,
        "POWER": power,
        "PRECISION": _precision(t.dtype),
        "BLOCK_N": 16 if t.dtype.itemsize == 4 else 64 if side <= 32 else 32,
        "BLOCK_C": 64,
        "BLOCK_D": max(16, triton.next_power_of_2(side)),
    }


def _warps(t: torch.Tensor) -> int:
    return 4 if t.dtype.itemsize == 4 else 8


def _runs(t: torch.Tensor, shapes: dict[str, Any]) -> tuple[int, int]:
    """How many tiles a program takes, which thus reads the means once, and the number of programs."""
    tiles = -(-t.size(1) // shapes["BLOCK_N"])
    run = max(1, min(8, len(t) * tiles // 1024))
    return run, len(t) * -(-tiles // run)


def _means(
    x: torch.Tensor,
    positions: torch.Tensor | None,
    factor: torch.Tensor,
    w: torch.Tensor,
    per_token: tuple[torch.Tensor, torch.Tensor] | tuple[None, None],
    count: int,
    shapes: dict[str, Any],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums over the tokens of `f(x) w^T` and of `f(x)`, divided by a count: `(B, H, D, D), (B, C)`, float32."""
    images, tokens, channels = x.shape
    heads, side = shapes["HEADS"], shapes["D"]
    group, block = min(heads, max(1, 64 // side)), 64 if x.dtype.itemsize == 2 else 16
    groups = -(-heads // group)
    splits = max(1, min(-(-512 // (images * groups)), tokens // 256))
    split_tokens = -(-tokens // (splits * block)) * block
    splits = -(-tokens // split_tokens)
    products = torch.empty(images, splits, channels, side, dtype=torch.float32, device=x.device)
    sums = torch.empty(images, splits, channels, dtype=torch.float32, device=x.device)
    wrap_triton(_means_kernel)[(images * splits * groups,)](
        x,
        positions,
        factor,
        w,
        *per_token,
        products,
        sums,
        tokens,
        x.stride(0),
        x.stride(1),
        w.stride(0),
        w.stride(1),
        split_tokens,
        splits,
        1.0 / count,
        GROUP=group,
        BLOCK_G=max(16, triton.next_power_of_2(group * side)),
        BLOCK_N=block,
        num_warps=_warps(x),
        num_stages=1,
        **{name: shapes[name] for name in ("HEADS", "D", "POWER", "PRECISION", "BLOCK_C")},
    )
    return products.sum(1).unflatten(1, (heads, side)), sums.sum(1)


def _fake_backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    positions: torch.Tensor | None,
    factor: torch.Tensor,
    weight: torch.Tensor | None,
    kv: torch.Tensor,
    mean: torch.Tensor,
    width: int,
    heads: int,
    power: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    return *(t.new_empty(t.shape) for t in (q, k, v)), torch.empty_like(factor)


@register(_fake_backward)
def focused_linear_attention_backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    positions: torch.Tensor | None,
    factor: torch.Tensor,
    weight: torch.Tensor | None,
    kv: torch.Tensor,
    mean: torch.Tensor,
    width: int,
    heads: int,
    power: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k, v and factor."""
    shapes = _shapes(q, heads, power)
    q_grad, k_grad, v_grad = (t.new_empty(t.shape) for t in (q, k, v))
    z, from_z = torch.empty(2, *q.shape[:2], heads, dtype=torch.float32, device=q.device).unbind()
    q_run, q_programs = _runs(q, shapes)
    k_run, k_programs = _runs(k, shapes)
    q_tiles = q_run * q_programs
    factor_grads = torch.empty(q_tiles + k_run * k_programs, q.size(2), dtype=torch.float32, device=q.device)
    wrap_triton(_queries_backward_kernel)[(q_programs,)](
        q,
        grad,
        factor,
        kv,
        mean,
        q_grad,
        factor_grads,
        z,
        from_z,
        q.size(1),
        q_run,
        q.stride(0),
        q.stride(1),
        grad.stride(0),
        grad.stride(1),
        num_warps=_warps(q),
        num_stages=1,
        **shapes,
    )
    kv_grad, mean_grad = _means(q, None, factor, grad, (z, from_z), k.size(1), shapes)
    wrap_triton(_keys_backward_kernel)[(k_programs,)](
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
        factor_grads[q_tiles:],
        k.size(1),
        k_run,
        width,
        k.stride(0),
        k.stride(1),
        v.stride(0),
        v.stride(1),
        grad.stride(0),
        grad.stride(1),
        SIDE=1 if weight is None else weight.size(3),
        num_warps=_warps(q),
        num_stages=1,
        **shapes,
    )
    return q_grad, k_grad, v_grad, factor_grads.sum(0)


def _fake(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    positions: torch.Tensor | None,
    factor: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    width: int,
    heads: int,
    power: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    images, _, channels = q.shape
    side = channels // heads
    kv = q.new_empty(images, heads, side, side, dtype=torch.float32)
    return q.new_empty(q.shape), kv, q.new_empty(images, channels, dtype=torch.float32)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    *tensors, ctx.bias, ctx.width, ctx.heads, ctx.power = inputs
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.bias = None if ctx.bias is None else ctx.bias.dtype
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: torch.Tensor, *_: None) -> tuple[torch.Tensor | None, ...]:
    q, k, v, positions, factor, weight, kv, mean = ctx.saved_tensors
    if grad.stride(2) != 1:
        grad = grad.contiguous()
    q_grad, k_grad, v_grad, factor_grad = focused_linear_attention_backward(
        grad, q, k, v, positions, factor, weight, kv, mean, ctx.width, ctx.heads, ctx.power
    )
    positions_grad = weight_grad = bias_grad = None
    if ctx.needs_input_grad[3]:
        positions_grad = k_grad.sum(0, dtype=torch.float32).to(positions.dtype)
    if ctx.needs_input_grad[5] or ctx.needs_input_grad[6]:
        weight_grad, bias_grad = depthwise_weight_gradients(v, grad, ctx.width, weight.size(3))
        weight_grad, bias_grad = weight_grad.to(weight.dtype), bias_grad.to(ctx.bias)
    return q_grad, k_grad, v_grad, positions_grad, factor_grad, weight_grad, bias_grad, None, None, None


@register(_fake, _setup, _backward)
def focused_linear_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    positions: torch.Tensor | None,
    factor: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    width: int,
    heads: int,
    power: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The result, and the means over the keys of key times value and of key, for the backward pass alone."""
    shapes = _shapes(q, heads, power)
    out = q.new_empty(q.shape)
    kv, mean = _means(k, positions, factor, v, (None, None), k.size(1), shapes)
    run, programs = _runs(q, shapes)
    wrap_triton(_result_kernel)[(programs,)](
        q,
        v,
        factor,
        kv,
        mean,
        weight,
        bias,
        out,
        q.size(1),
        run,
        width,
        q.stride(0),
        q.stride(1),
        v.stride(0),
        v.stride(1),
        SIDE=1 if weight is None else weight.size(3),
        num_warps=_warps(q),
        num_stages=1,
        **shapes,
    )
    return out, kv, mean
