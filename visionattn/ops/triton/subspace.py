"""Scores of subspaces, moments of channels and the gate that uses them, by the kernels of `_subspace_kernels`.

The gate is `axis_gate` on a view of the map that has the groups in an axis of their own.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton

from visionattn.ops.eager._function import Function
from visionattn.ops.eager.axis_gate import gate_of_groups, grouped
from visionattn.ops.subspace_scores import scores_formula

from ._axis_launch import PROGRAMS, axis_gate, axis_gate_backward, is_nhwc
from ._register import formula_gradients, power_of_2, register, unit_of, wrap_triton
from ._subspace_kernels import affine, moments, scores, scores_backward

__all__ = ["channel_moments", "residual_gate", "subspace_attention", "subspace_scores"]

# Numbers in a tile.
TILE = 2048


def channel_moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    means, squares = image_moments(x)
    return _joined_moments(means, squares, x)


def _joined_moments(means: torch.Tensor, squares: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The images' moments make those of the batch: few numbers, and exact for any means."""
    count = x.shape[2] * x.shape[3]
    mean = means.mean(0)
    var = (squares.mean(0) / count) + (means - mean).square().mean(0)
    return mean, var


def subspace_scores(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return group_scores(x, scale, shift, weight)


def subspace_attention(
    x: torch.Tensor,
    numbers: Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
    attention: Callable[[torch.Tensor], torch.Tensor],
    num_groups: int,
    moments: bool,
    residual: torch.Tensor | None = None,
    relu: bool = False,
) -> torch.Tensor:
    if not (x.requires_grad and torch.is_grad_enabled()):
        made = numbers(*channel_moments(x)) if moments else numbers()
        return residual_gate(x, attention(group_scores(x, *made)), residual, relu)
    through, means, squares, gate_ticket, *tickets = _Uses.apply(x, moments, num_groups)
    scale, shift, weight = numbers(*_joined_moments(means, squares, x)) if moments else numbers()
    scores = _Scores.apply(x, scale, shift, weight, *tickets)
    gate = attention(scores).to(x.dtype)
    return _ResidualGate.apply(through, x, residual, relu, gate, gate_ticket)


def residual_gate(
    x: torch.Tensor, attention: torch.Tensor, residual: torch.Tensor | None = None, relu: bool = False
) -> torch.Tensor:
    groups, nhwc = attention.shape[1], is_nhwc(x)
    added = None if residual is None else grouped(_lying_as(residual, x), groups, nhwc)
    out = axis_gate(grouped(x, groups, nhwc), [gate_of_groups(attention, nhwc)], added, "product", True, False, relu)
    return _ungrouped(out, x)


def _lying_as(other: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return other.contiguous(memory_format=torch.channels_last if is_nhwc(x) else torch.contiguous_format)


def _ungrouped(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The map that such a view is of."""
    if is_nhwc(like):
        return x.flatten(2).unflatten(1, like.shape[2:]).permute(0, 3, 1, 2)
    return x.view_as(like)


class _Uses(Function):
    """The map itself, the moments of each channel of each image, and tickets: for the attention and for `_Scores`.

    The gradients of all that is done with the map are one pass over it, in which the maxima are found once more.
    """

    @staticmethod
    def forward(x: torch.Tensor, moments: bool, groups: int) -> tuple[torch.Tensor, ...]:
        channels = x.shape[1]
        maps = (x.shape[0], groups, *x.shape[2:])
        means, squares = image_moments(x) if moments else (x.new_empty(0), x.new_empty(0))
        shapes = (maps, maps, (channels,), (channels,), (groups, channels // groups))
        zero = torch.zeros((), device=x.device)
        return x.view_as(x), means, squares, *(zero.expand(shape) for shape in shapes)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
        x, ctx.moments, _ = inputs
        ctx.save_for_backward(x, output[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, None, None]:
        x, means = ctx.saved_tensors
        dz, d_means, d_squares, attention, grad, *numbers = grads
        if dz is None or attention is None:
            return None, None, None
        if torch.is_grad_enabled():
            return _formula_of_uses(x, dz, attention, grad, numbers, (d_means, d_squares)), None, None
        slope = offset = None
        if d_means is not None and d_squares is not None:
            slope = 2 * d_squares
            offset = d_means / (x.shape[2] * x.shape[3]) - slope * means
        if grad is None:  # frozen scores: the gate alone, by the same kernel with nothing to hand out
            grad = torch.zeros_like(attention)
            flat = torch.zeros(x.shape[1], dtype=torch.float32, device=x.device)
            numbers = [flat, flat, flat.view(grad.shape[1], -1)]
        dx, _, _ = group_scores_backward(grad, x, *numbers, dz, attention, slope, offset, True, False)
        return dx, None, None


def _formula_of_uses(
    x: torch.Tensor,
    dz: torch.Tensor,
    attention: torch.Tensor,
    grad: torch.Tensor | None,
    numbers: Sequence[Any],
    moments: tuple[torch.Tensor | None, torch.Tensor | None],
) -> torch.Tensor:
    """The gradient of a map as a formula that can be differentiated once more."""
    total = dz + dz * attention.to(dz.dtype).repeat_interleave(x.shape[1] // attention.shape[1], dim=1)
    parts: list[torch.Tensor | None] = []
    if grad is not None:
        parts.append(formula_gradients(_formula, (x, *numbers), (grad.to(x.dtype),))[0])
    if moments[0] is not None and moments[1] is not None:
        parts.append(formula_gradients(_image_moments, (x,), (moments[0], moments[1]))[0])
    for part in parts:
        total = total if part is None else total + part
    return total


class _Scores(Function):
    """`group_scores`, whose gradient of the map is left to `_Uses`."""

    @staticmethod
    def forward(
        x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, weight: torch.Tensor, *tickets: torch.Tensor
    ) -> torch.Tensor:
        return group_scores(x, scale, shift, weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        ctx.save_for_backward(*inputs[:4])

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, *numbers = ctx.saved_tensors
        if torch.is_grad_enabled():
            grads = formula_gradients(_formula, (x, *numbers), (grad,))[1:]
        else:
            _, totals, sums = group_scores_backward(grad, x, *numbers, None, None, None, None, False, True)
            grads = _numbers_gradients(totals, sums, *numbers)
        return None, *grads, grad.float(), *(part.float() for part in numbers)


class _ResidualGate(Function):
    """`residual_gate`, whose gradient of the map is left to `_Uses`."""

    @staticmethod
    def forward(
        through: torch.Tensor,
        x: torch.Tensor,
        residual: torch.Tensor | None,
        relu: bool,
        attention: torch.Tensor,
        ticket: torch.Tensor,
    ) -> torch.Tensor:
        return residual_gate(through, attention, residual, relu)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        _, x, residual, relu, attention, _ = inputs
        ctx.residual = residual is not None
        ctx.save_for_backward(x, output if relu else None, attention)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, y, attention = ctx.saved_tensors
        groups = attention.shape[1]
        if torch.is_grad_enabled():
            dz = dy if y is None else dy * (y > 0)
            d_attention = (dz * x).unflatten(1, (groups, -1)).sum(2)
        else:
            dy, nhwc = _lying_as(dy, x), is_nhwc(x)
            rows, gate = grouped(x, groups, nhwc), gate_of_groups(attention, nhwc)
            slopes = (grouped(dy, groups, nhwc), None if y is None else grouped(y, groups, nhwc))
            _, dz, d_gate = axis_gate_backward(*slopes, rows, [gate], "product", True, False, False, y is not None)
            dz = dy if y is None else _ungrouped(dz, x)
            maps = (len(x), *x.shape[2:], groups)
            d_attention = d_gate.view(maps).permute(0, 3, 1, 2) if nhwc else d_gate.view_as(attention)
        return dz, None, dz if ctx.residual else None, None, d_attention, attention.float()


def _tile(x: torch.Tensor, channels: int, share: int = 1) -> dict[str, Any]:
    """How programs divide a map of which they see so many channels at a time; in how much of a tile, where rows lie so.

    The gradient of the scores holds more numbers around each than the threads of a whole tile have registers for.
    """
    nhwc, (height, width) = is_nhwc(x), x.shape[2:]
    numbers = TILE if nhwc else TILE // share
    if nhwc:
        c = power_of_2(channels, 64)
        w = power_of_2(width, 8)
        h = power_of_2(height, numbers // (c * w))
    else:
        w = power_of_2(width, 64)
        h = power_of_2(height, numbers // w)
        c = power_of_2(channels, numbers // (h * w))
    warps = max(1, min(h * w * c * (TILE // numbers) // 256, 8))
    return {"UNIT": unit_of(width), "NHWC": nhwc, "HB": h, "WB": w, "CB": c, "num_warps": warps}


def _sizes(x: torch.Tensor) -> tuple[int, int]:
    """Height, and width in units of what the kernels are compiled for."""
    return x.shape[2], x.shape[3] // unit_of(x.shape[3])


def _parts(x: torch.Tensor, tile: dict[str, Any]) -> int:
    return triton.cdiv(x.shape[2], tile["HB"]) * triton.cdiv(x.shape[3], tile["WB"])


def _like(x: torch.Tensor) -> torch.Tensor:
    layout = torch.channels_last if is_nhwc(x) else torch.contiguous_format
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=layout)


def _scores_result(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return torch.empty((len(x), len(weight), *x.shape[2:]), dtype=x.dtype, device=x.device)


def _save_scores(ctx: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate_scores(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    x, scale, shift, weight = ctx.saved_tensors
    if torch.is_grad_enabled():
        return formula_gradients(_formula, (x, scale, shift, weight), (grad,))
    dx, totals, sums = group_scores_backward(grad, x, scale, shift, weight, None, None, None, None, True, True)
    return dx, *_numbers_gradients(totals, sums, scale, shift, weight)


def _numbers_gradients(
    totals: torch.Tensor, sums: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """The gradients of scale, shift and weight of the sums that `scores_backward` makes."""
    total, moment = totals.sum((0, 1)), sums.sum((0, 1))
    # What was handed to a cell is the gradient of the maximum that it won, so sums over the maxima are sums here.
    flat = weight.flatten().float()
    d_weight = scale.float() * moment + shift.float() * total
    grads = moment * flat, total * flat, d_weight.view_as(weight)
    return tuple(grad.to(part.dtype) for grad, part in zip(grads, (scale, shift, weight), strict=True))


def _formula(x: torch.Tensor, *numbers: torch.Tensor) -> torch.Tensor:
    return scores_formula(x, *(part.to(x.dtype) for part in numbers))


@register(_scores_result, _save_scores, _differentiate_scores)
def group_scores(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`(B, C, H, W), (C,), (C,), (G, C / G) -> (B, G, H, W)`."""
    out = _scores_result(x, scale, shift, weight)
    groups, group = weight.shape
    tile = _tile(x, group)
    wrap_triton(scores)[(len(x) * groups * _parts(x, tile),)](
        x, scale.contiguous(), shift.contiguous(), weight.contiguous(), out,
        x.shape[1], group, groups, *_sizes(x), **tile,
    )  # fmt: skip
    return out


def _scores_gradients(
    grad: torch.Tensor,
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    weight: torch.Tensor,
    base: torch.Tensor | None,
    attention: torch.Tensor | None,
    slope: torch.Tensor | None,
    offset: torch.Tensor | None,
    want_x: bool,
    want_sums: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    sums = (_parts(x, _tile(x, x.shape[1], share=2)), len(x), x.shape[1]) if want_sums else (0,)
    totals, moments = (torch.empty(sums, dtype=torch.float32, device=x.device) for _ in range(2))
    return _like(x) if want_x else x.new_empty(0), totals, moments


@register(_scores_gradients)
def group_scores_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    weight: torch.Tensor,
    base: torch.Tensor | None,
    attention: torch.Tensor | None,
    slope: torch.Tensor | None,
    offset: torch.Tensor | None,
    want_x: bool,
    want_sums: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradient of x, and sums for those of the rest (empty unless wanted); see `scores_backward`."""
    results = _scores_gradients(grad, x, scale, shift, weight, base, attention, slope, offset, want_x, want_sums)
    wanted = (want_x, want_sums, want_sums)
    tile = _tile(x, x.shape[1], share=2)
    channels, group = x.shape[1], weight.shape[1]
    layout = torch.channels_last if tile["NHWC"] else torch.contiguous_format
    base = None if base is None else base.contiguous(memory_format=layout)
    small = (None if part is None else part.contiguous() for part in (attention, slope, offset))
    wrap_triton(scores_backward)[(len(x) * _parts(x, tile) * triton.cdiv(channels, tile["CB"]),)](
        grad.contiguous(), x, scale.contiguous(), shift.contiguous(), weight.contiguous(), base, *small,
        *(part if want else None for part, want in zip(results, wanted, strict=True)),
        len(x), channels, group, *_sizes(x), **tile,
    )  # fmt: skip
    return results


def _moments_result(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    means, squares = (torch.empty(x.shape[:2], dtype=torch.float32, device=x.device) for _ in range(2))
    return means, squares


def _save_moments(ctx: Any, inputs: tuple[torch.Tensor], output: tuple[torch.Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, output[0])


def _differentiate_moments(ctx: Any, d_means: torch.Tensor, d_squares: torch.Tensor) -> torch.Tensor | None:
    x, means = ctx.saved_tensors
    if torch.is_grad_enabled():
        return formula_gradients(_image_moments, (x,), (d_means, d_squares))[0]
    slope = 2 * d_squares
    return image_affine(x, slope, d_means / (x.shape[2] * x.shape[3]) - slope * means)


def _image_moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    values = x.float().flatten(2)
    mean = values.mean(2)
    return mean, (values - mean.unsqueeze(2)).square().sum(2)


@register(_moments_result, _save_moments, _differentiate_moments)
def image_moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each channel of each image the mean and the sum of squares around it, `(B, C)`, in float32."""
    tile = _tile(x, x.shape[1])
    chunks = triton.cdiv(x.shape[1], tile["CB"])
    # Rows are divided among programs where images and channels are too few to fill the GPU.
    parts = max(1, min(PROGRAMS // (len(x) * chunks), triton.cdiv(x.shape[2], tile["HB"])))
    chunk = triton.cdiv(triton.cdiv(x.shape[2], tile["HB"]), parts) * tile["HB"]
    parts = triton.cdiv(x.shape[2], chunk)
    sums, squares = (torch.empty((parts, *x.shape[:2]), dtype=torch.float32, device=x.device) for _ in range(2))
    wrap_triton(moments)[(len(x) * parts * chunks,)](x, sums, squares, len(x), x.shape[1], *_sizes(x), chunk, **tile)
    total, count = sums.sum(0), x.shape[2] * x.shape[3]
    return x[:, :, 0, 0] + total / count, squares.sum(0) - total.square() / count


def _affine_result(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    return _like(x)


@register(_affine_result)
def image_affine(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """`scale * x + shift` for numbers of each channel of each image, `(B, C)`."""
    out = _like(x)
    tile = _tile(x, x.shape[1])
    wrap_triton(affine)[(len(x) * _parts(x, tile) * triton.cdiv(x.shape[1], tile["CB"]),)](
        x, scale.contiguous(), shift.contiguous(), None, out, x.shape[1], *_sizes(x), **tile
    )
    return out
