"""Halo attention on GPUs, by the kernels of block-sparse attention: no window is cut, no score leaves the chip."""

from typing import Any

import torch
import triton

from visionattn.ops._autocast import autocast_dtype
from visionattn.ops.halo_attention import halo_attention as torch_code

from . import _block_sparse_kernels as kernels
from ._register import formula_gradients, register, wrap_triton
from .block_sparse import place_of, tiles_of

__all__ = ["halo_attention"]

Tensors2 = tuple[torch.Tensor, torch.Tensor]


def halo_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    height_rel: torch.Tensor,
    width_rel: torch.Tensor,
    *,
    block_size: int,
    halo_size: int,
    dropout_p: float = 0.0,
) -> torch.Tensor:
    """As `visionattn.ops.halo_attention`."""
    dtype = autocast_dtype(q) or q.dtype  # as PyTorch's attention does
    q, k, v, height_rel, width_rel = (x.to(dtype) for x in (q, k, v, height_rel, width_rel))
    if q.stride(-1) != 1:
        q = q.contiguous()
    if k.stride(-1) != 1 or k.stride() != v.stride():
        k, v = k.contiguous(), v.contiguous()
    return halo_forward(q, k, v, height_rel, width_rel, block_size, halo_size)[0].flatten(3)


def _like_forward(q: torch.Tensor, *others: Any) -> Tensors2:
    batch, height, width, heads, _ = q.shape
    return q.new_empty(q.shape), q.new_empty(2, batch, heads, height * width, dtype=torch.float32)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensors2) -> None:
    *tensors, ctx.block, ctx.halo = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: torch.Tensor | None, _: None) -> tuple[Any, ...]:
    q, k, v, height_rel, width_rel, out, sums = ctx.saved_tensors
    if grad is None:
        grad = torch.zeros_like(out)
    if torch.is_grad_enabled():
        settings = {"block_size": ctx.block, "halo_size": ctx.halo, "backend": "torch"}
        inputs = (q, k, v, height_rel, width_rel)
        found = formula_gradients(lambda *x: torch_code(*x, **settings).view_as(out), inputs, (grad,))
        return *found, None, None
    d_qkv, d_distances = halo_backward(q, k, v, height_rel, width_rel, out, sums, grad, ctx.block, ctx.halo)
    d_q, d_k, d_v = d_qkv.unbind(3)
    d_distances = d_distances.flatten(0, 3)
    d_q = d_q.flatten(0, 3).addmm(d_distances, torch.cat([height_rel, width_rel])).view(q.shape)
    d_tables = d_distances.T @ q.flatten(0, 3)
    return d_q, d_k, d_v, *d_tables.split([len(height_rel), len(width_rel)]), None, None


@register(_like_forward, _setup, _backward)
def halo_forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    height_rel: torch.Tensor,
    width_rel: torch.Tensor,
    block: int,
    halo: int,
) -> Tensors2:
    out, sums = _like_forward(q)
    distances, place, tiles, programs = _setting(q, k, height_rel, width_rel, block, halo)
    rows = (x.flatten(1, 2) for x in (q, k, v))
    wrap_triton(kernels.attend)[programs](
        *rows, None, None, None, None, distances, out, *sums.unbind(), q.size(4) ** -0.5, **place, **tiles
    )
    return out, sums


def _like_backward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, height_rel: torch.Tensor, *_: Any) -> Tensors2:
    batch, height, width, heads, dim = q.shape
    return q.new_empty(batch, height, width, 3, heads, dim), q.new_empty(*q.shape[:4], 2 * len(height_rel))


@register(_like_backward)
def halo_backward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    height_rel: torch.Tensor,
    width_rel: torch.Tensor,
    out: torch.Tensor,
    sums: torch.Tensor,
    grad: torch.Tensor,
    block: int,
    halo: int,
) -> Tensors2:
    grad = grad.flatten(1, 2)
    if grad.stride(-1) != 1:
        grad = grad.contiguous()
    distances, place, tiles, programs = _setting(q, k, height_rel, width_rel, block, halo)
    place |= dict(zip(("grad_by_image", "grad_by_token", "grad_by_head"), grad.stride()[:3], strict=True))
    rows, scale = [x.flatten(1, 2) for x in (q, k, v)], q.size(4) ** -0.5
    d_qkv, deltas = _like_backward(q, k, v, height_rel)[0], torch.empty_like(sums[0])
    # Distances that occur for no key of a query have no gradient.
    d_distances = torch.zeros_like(distances)
    wrap_triton(kernels.grad_queries)[programs](
        *rows, None, None, None, None, distances, out, *sums.unbind(), grad, deltas, d_qkv, d_distances, scale,
        **place, **tiles,
    )  # fmt: skip
    of_slots = {name: value for name, value in tiles.items() if name != "BLOCK_N"}
    wrap_triton(kernels.grad_keys)[programs](
        *rows, None, None, None, None, None, distances, *sums.unbind(), grad, deltas, None, d_qkv, None, scale,
        ALONE=False, **place, **of_slots,
    )  # fmt: skip
    return d_qkv, d_distances


def _setting(
    q: torch.Tensor, k: torch.Tensor, height_rel: torch.Tensor, width_rel: torch.Tensor, block: int, halo: int
) -> tuple[torch.Tensor, dict[str, Any], dict[str, int], tuple[int]]:
    """The terms of all distances, `(B, H, W, heads, down and across)`, what the kernels are told, and the programs."""
    batch, height, width, heads, _ = q.shape
    windows = (height, width, min(block, height), min(block, width), 0, 0)
    place = place_of(q.flatten(1, 2), k.flatten(1, 2), None, None, windows, halo=halo, span=len(height_rel))
    tiles = tiles_of(place, q.element_size())
    programs = batch * place["blocks"] * triton.cdiv(place["slots"], tiles["BLOCK_M"]) * heads
    return q @ torch.cat([height_rel, width_rel]).T, place, tiles, (programs,)
