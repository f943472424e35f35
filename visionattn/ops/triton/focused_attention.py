"""Kernels of focused attention: the keys meet the values first, and nothing of the features is kept.

The features need the length of a token over all heads, so that a block of threads owns tokens with all their channels.
"""

from typing import Any

import torch
import triton
from torch.nn import functional as F

from visionattn.ops.focused_attention import formula, split_parts
from visionattn.ops.nhwc_conv import nhwc_conv

from ._depthwise import depthwise_weight_gradients
from ._focus import precision
from ._focused_backward import keys_backward_kernel, queries_backward_kernel
from ._focused_forward import means_kernel, result_kernel
from ._register import formula_gradients, power_of_2, register, wrap_triton

__all__ = ["focused_attention"]


def focused_attention(
    q: torch.Tensor,
    k: torch.Tensor | None,
    v: torch.Tensor | None,
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


def _shapes(t: torch.Tensor, heads: int, power: int) -> dict[str, Any]:
    """The constants of a kernel that owns tiles of tokens."""
    side = t.size(2) // heads
    return {
        "HEADS": heads,
        "D": side,
        "POWER": power,
        "PRECISION": precision(t.dtype),
        "BLOCK_N": 16 if t.dtype.itemsize == 4 else 64 if side <= 32 else 32,
        "BLOCK_C": 64,
        "BLOCK_D": max(16, power_of_2(side, 64)),
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
    group = min(heads, max(1, 64 // side))
    # The backward pass multiplies twice, for the digits that bfloat16 has not.
    block = 16 if x.dtype.itemsize == 4 else 64 if per_token[0] is None else 32
    groups = -(-heads // group)
    splits = max(1, min(-(-512 // (images * groups)), tokens // 256))
    split_tokens = -(-tokens // (splits * block)) * block
    splits = -(-tokens // split_tokens)
    products = torch.empty(images, splits, channels, side, dtype=torch.float32, device=x.device)
    sums = torch.empty(images, splits, channels, dtype=torch.float32, device=x.device)
    wrap_triton(means_kernel)[(images * splits * groups,)](
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
        BLOCK_G=max(16, power_of_2(group * side, 64)),
        BLOCK_N=block,
        num_warps=_warps(x),
        num_stages=1,
        **{name: shapes[name] for name in ("HEADS", "D", "POWER", "PRECISION", "BLOCK_C")},
    )
    return products.sum(1).unflatten(1, (heads, side)), sums.sum(1)


def _fake_backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor | None,
    v: torch.Tensor | None,
    positions: torch.Tensor | None,
    factor: torch.Tensor,
    weight: torch.Tensor | None,
    kv: torch.Tensor,
    mean: torch.Tensor,
    width: int,
    heads: int,
    power: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    return *_empty_parts(q, k, v), torch.empty_like(factor)


def _empty_parts(
    q: torch.Tensor, k: torch.Tensor | None, v: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    first, second, third = (q.new_empty((0,) if t is None else t.shape) for t in (q, k, v))
    return first, second, third


@register(_fake_backward)
def focused_linear_attention_backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor | None,
    v: torch.Tensor | None,
    positions: torch.Tensor | None,
    factor: torch.Tensor,
    weight: torch.Tensor | None,
    kv: torch.Tensor,
    mean: torch.Tensor,
    width: int,
    heads: int,
    power: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k, v and factor; where q holds all three, so does its gradient, and the next two are empty."""
    grads = _empty_parts(q, k, v)
    q_grad, k_grad, v_grad = grads if k is not None else split_parts(grads[0], None, None)
    q, k, v = split_parts(q, k, v)
    shapes = _shapes(q, heads, power)
    z, from_z = torch.empty(2, *q.shape[:2], heads, dtype=torch.float32, device=q.device).unbind()
    q_tiles, k_tiles = (len(t) * triton.cdiv(t.size(1), shapes["BLOCK_N"]) for t in (q, k))
    factor_grads = torch.empty(q_tiles + k_tiles, q.size(2), dtype=torch.float32, device=q.device)
    wrap_triton(queries_backward_kernel)[(q_tiles,)](
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
        q.stride(0),
        q.stride(1),
        grad.stride(0),
        grad.stride(1),
        q_grad.stride(0),
        q_grad.stride(1),
        num_warps=_warps(q),
        num_stages=1,
        **shapes,
    )
    kv_grad, mean_grad = _means(q, None, factor, grad, (z, from_z), k.size(1), shapes)
    wrap_triton(keys_backward_kernel)[(k_tiles,)](
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
        width,
        k.stride(0),
        k.stride(1),
        v.stride(0),
        v.stride(1),
        grad.stride(0),
        grad.stride(1),
        k_grad.stride(0),
        k_grad.stride(1),
        v_grad.stride(0),
        v_grad.stride(1),
        SIDE=1 if weight is None else weight.size(3),
        num_warps=_warps(q),
        num_stages=1,
        **shapes,
    )
    return *grads, factor_grads.sum(0)


def _fake(
    q: torch.Tensor,
    k: torch.Tensor | None,
    v: torch.Tensor | None,
    positions: torch.Tensor | None,
    factor: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    width: int,
    heads: int,
    power: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    images, tokens, channels = split_parts(q, k, v)[0].shape
    side = channels // heads
    kv = q.new_empty(images, heads, side, side, dtype=torch.float32)
    return q.new_empty(images, tokens, channels), kv, q.new_empty(images, channels, dtype=torch.float32)


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
    if torch.is_grad_enabled():
        return _differentiable_backward(ctx, grad)
    q_grad, k_grad, v_grad, factor_grad = focused_linear_attention_backward(
        grad, q, k, v, positions, factor, weight, kv, mean, ctx.width, ctx.heads, ctx.power
    )
    positions_grad = weight_grad = bias_grad = None
    if ctx.needs_input_grad[3]:
        of_keys = split_parts(q_grad, None, None)[1] if k is None else k_grad
        positions_grad = of_keys.sum(0, dtype=torch.float32).to(positions.dtype)
    if ctx.needs_input_grad[5] or ctx.needs_input_grad[6]:
        values = split_parts(q, k, v)[2]
        weight_grad, bias_grad = depthwise_weight_gradients(values, grad, ctx.width, weight.size(3))
        weight_grad, bias_grad = weight_grad.to(weight.dtype), bias_grad.to(ctx.bias)
    if k is None:
        k_grad = v_grad = None
    return q_grad, k_grad, v_grad, positions_grad, factor_grad, weight_grad, bias_grad, None, None, None


def _differentiable_backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    """The gradients of the torch code."""

    def torch_code(
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        positions: torch.Tensor | None,
        factor: torch.Tensor,
        weight: torch.Tensor | None,
    ) -> torch.Tensor:
        q, k, v = split_parts(q, k, v)
        positions = k.new_zeros(()) if positions is None else positions
        parts = q.float(), k.float(), v.float(), positions.float()
        out = formula(*parts, factor, ctx.heads, ctx.power).to(v.dtype)
        if weight is None:
            return out
        grid = v.unflatten(1, (-1, ctx.width))
        return out + nhwc_conv(grid, weight, padding=weight.size(3) // 2, groups=v.size(2)).flatten(1, 2)

    grads = formula_gradients(torch_code, ctx.saved_tensors[:6], (grad,))
    bias_grad = None if ctx.bias is None else grad.sum((0, 1)).to(ctx.bias)
    return *grads, bias_grad, None, None, None


@register(_fake, _setup, _backward)
def focused_linear_attention(
    q: torch.Tensor,
    k: torch.Tensor | None,
    v: torch.Tensor | None,
    positions: torch.Tensor | None,
    factor: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    width: int,
    heads: int,
    power: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The result, and the means over the keys of key times value and of key, for the backward pass alone."""
    q, k, v = split_parts(q, k, v)
    shapes = _shapes(q, heads, power)
    out = q.new_empty(q.shape)
    kv, mean = _means(k, positions, factor, v, (None, None), k.size(1), shapes)
    run, programs = _runs(q, shapes)
    wrap_triton(result_kernel)[(programs,)](
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
