"""Scores of subspaces, moments of channels and the gate that uses them, by the kernels of `_subspace_kernels`.

The gate is `axis_gate` on a view of the map that has the groups in an axis of their own.
"""

from typing import Any

import torch
import triton

from visionattn.ops.subspace_scores import scores_formula

from ._axis_launch import PROGRAMS, axis_gate, is_nhwc
from ._register import formula_gradients, power_of_2, register, unit_of, wrap_triton
from ._subspace_kernels import affine, moments, scores, scores_backward

__all__ = ["channel_moments", "residual_gate", "subspace_scores"]

# Numbers in a tile.
TILE = 2048


def channel_moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    means, squares = image_moments(x)
    # The images' moments make those of the batch: few numbers, and exact for any means.
    count = x.shape[2] * x.shape[3]
    mean = means.mean(0)
    var = (squares.mean(0) / count) + (means - mean).square().mean(0)
    return mean, var


def subspace_scores(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return group_scores(x, scale, shift, weight)


def residual_gate(x: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
    groups = attention.shape[1]
    if is_nhwc(x):
        rows = x.permute(0, 2, 3, 1).unflatten(3, (groups, -1)).flatten(1, 2)
        gate = attention.permute(0, 2, 3, 1).flatten(1, 2).unsqueeze(3)
        out = axis_gate(rows, [gate], None, "product", True, False, False)
        return out.flatten(2).unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)
    maps = x.reshape(len(x) * groups, -1, *x.shape[2:])
    return axis_gate(maps, [attention.reshape(-1, 1, *x.shape[2:])], None, "product", True, False, False).view_as(x)


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
    dx, totals, sums = group_scores_backward(grad, x, scale, shift, weight)
    total, moment = totals.sum((0, 1)), sums.sum((0, 1))
    # What was handed to a cell is the gradient of the maximum that it won, so sums over the maxima are sums here.
    flat = weight.flatten().float()
    d_weight = scale.float() * moment + shift.float() * total
    grads = moment * flat, total * flat, d_weight.view_as(weight)
    return dx, *(grad.to(part.dtype) for grad, part in zip(grads, (scale, shift, weight), strict=True))


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
    grad: torch.Tensor, x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    sums = (_parts(x, _tile(x, x.shape[1], share=2)), len(x), x.shape[1])
    totals, moments = (torch.empty(sums, dtype=torch.float32, device=x.device) for _ in range(2))
    return _like(x), totals, moments


@register(_scores_gradients)
def group_scores_backward(
    grad: torch.Tensor, x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradient of x, and sums for those of the rest; see `scores_backward`."""
    results = _scores_gradients(grad, x, scale, shift, weight)
    tile = _tile(x, x.shape[1], share=2)
    channels, group = x.shape[1], weight.shape[1]
    wrap_triton(scores_backward)[(len(x) * _parts(x, tile) * triton.cdiv(channels, tile["CB"]),)](
        grad.contiguous(), x, scale.contiguous(), shift.contiguous(), weight.contiguous(), None, *results,
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
