"""Attention to routed regions, whose gathered keys and values are recomputed for the backward pass.

Inference attends to regions that were cut out before the projection.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from visionattn.ops._modes import calls_eager_kernel
from visionattn.ops.attention import softmax_attention
from visionattn.ops.window_attention import merge_windows, partition_windows

from ._function import EagerFunction, Tensors
from ._opaque import opaque

__all__ = ["RoutedAttention", "attend_regions", "local_values", "pick_regions"]


def pick_regions(
    qkv: torch.Tensor, num_heads: int, table: torch.Tensor, region: tuple[int, int]
) -> tuple[tuple[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
    """Queries of each region, keys and values of its routed regions, and the rows of these regions.

    `(B, H, W, 3C) -> (B * regions, heads, n, d)` and twice `(B * regions, heads, K * n, d)`; `(B * regions * K,)`.
    """
    batch, regions, count = table.shape
    rows = partition_windows(qkv, region)
    q, kv = rows.tensor_split((rows.size(2) // 3,), dim=2)
    first = torch.arange(batch, device=table.device).view(-1, 1, 1) * regions
    picked = (table + first).flatten()
    # Whole regions are copied, with one row for each.
    seen = (batch * regions, count * rows.size(1))
    if calls_eager_kernel(kv):
        parts = (opaque_rows(part.flatten(1), picked).view(*seen, num_heads, -1) for part in kv.chunk(2, 2))
        k, v = (part.transpose(1, 2) for part in parts)
    else:
        kv = kv.flatten(1).index_select(0, picked)
        k, v = kv.view(*seen, 2, num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    return (q.unflatten(2, (num_heads, -1)).transpose(1, 2), k, v), picked


def _pick(rows: torch.Tensor, picked: torch.Tensor) -> torch.Tensor:
    return rows.index_select(0, picked)


def _picked_like(rows: torch.Tensor, picked: torch.Tensor) -> torch.Tensor:
    return rows.new_empty(picked.size(0), rows.size(1))


def _put_back(grad: torch.Tensor, rows: torch.Tensor, picked: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros_like(rows).index_add_(0, picked, grad), torch.zeros_like(picked)


# A compiler would look up the row of each single number.
opaque_rows = opaque("pick_rows", _pick, _picked_like, _put_back)


class RoutedAttention(EagerFunction):
    """`apply(formula, qkv, weight, bias, num_heads, table, region, scale)`, as `visionattn.ops.routed_attention`.

    The result itself is kept, which the projection after it keeps anyway; without the convolution, made again, it is
    the attention's.
    """

    @staticmethod
    def compute(
        qkv: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        num_heads: int,
        table: torch.Tensor,
        region: tuple[int, int],
        scale: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        (q, k, v), _ = pick_regions(qkv, num_heads, table, region)
        found, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, scale=scale)
        out = merge_windows(found.transpose(1, 2).flatten(2), (qkv.size(1), qkv.size(2)), region)
        local = local_values(qkv, weight, bias)
        # The merged map may be a view of what the operator left, and this a second name for it: nobody else has it.
        return (out if local is None else out.add_(local)), sums

    @classmethod
    def setup_context(cls, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        super().setup_context(ctx, inputs, output)
        ctx.save_for_backward(*inputs[1:4], *output)

    @staticmethod
    def gradients(ctx: Any, grad: torch.Tensor, *_: Any) -> Tensors:
        qkv, weight, bias, out, sums = ctx.saved_tensors
        num_heads, table, region, scale = ctx.settings
        (q, k, v), picked = pick_regions(qkv, num_heads, table, region)
        local = local_values(qkv, weight, bias)
        found = out if local is None else out - local
        by_head = [partition_windows(x, region).unflatten(2, (num_heads, -1)).transpose(1, 2) for x in (grad, found)]
        parts = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            by_head[0], q, k, v, by_head[1], sums, 0.0, False, scale=scale
        )
        dim = grad.size(3)
        d_qkv = torch.empty_like(qkv)
        for number, part in enumerate(parts):
            rows = part.transpose(1, 2).flatten(2)
            if number:
                copies = rows.reshape(picked.numel(), -1)
                rows = copies.new_zeros(q.size(0), copies.size(1)).index_add_(0, picked, copies).unflatten(1, (-1, dim))
            # Straight to their places in the map.
            d_qkv[..., number * dim : (number + 1) * dim] = merge_windows(rows, (grad.size(1), grad.size(2)), region)
        if weight is None:
            return d_qkv, None, None
        d_v, d_weight, d_bias = torch.ops.aten.convolution_backward(
            grad.permute(0, 3, 1, 2),
            qkv[..., 2 * dim :].permute(0, 3, 1, 2),
            weight,
            None if bias is None else [dim],
            [1, 1],
            [side // 2 for side in weight.shape[2:]],
            [1, 1],
            False,
            [0, 0],
            dim,
            [True, True, bias is not None],
        )
        d_qkv[..., 2 * dim :] += d_v.permute(0, 2, 3, 1)
        return d_qkv, d_weight, d_bias


def attend_regions(
    parts: Sequence[torch.Tensor],
    table: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    num_heads: int,
    size: tuple[int, int],
    region: tuple[int, int],
    scale: float,
) -> torch.Tensor:
    """Attention of regions that are cut out already, without gradients. `-> (B, H, W, C)`.

    Args:
        parts: Queries, keys and values of each region, `(B * regions, n, C)`.
        table: As for `visionattn.ops.routed_attention`.
        weight: Of the convolution of the values, if there is one.
        bias: Of the convolution.
        num_heads: Number of heads.
        size: Height H and width W of the map.
        region: Height and width of a region.
        scale: Factor of the scores.
    """
    batch, regions, _ = table.shape
    picked = (table + torch.arange(batch, device=table.device).view(-1, 1, 1) * regions).flatten()
    q, k, v = parts
    seen = (x.index_select(0, picked).view(batch * regions, -1, x.size(2)) for x in (k, v))
    q, k, v = (x.unflatten(2, (num_heads, -1)).transpose(1, 2) for x in (q, *seen))
    found = softmax_attention(q, k, v, scale=scale).transpose(1, 2).flatten(2)
    del q, k, v  # what is made next takes their place
    if weight is None:
        return merge_windows(found, size, region)
    local = _convolved(merge_windows(parts[2], size, region), weight, bias)
    # Added where it lies, without being laid into a map first.
    tiles = (size[0] // region[0], size[1] // region[1])
    tiled = local.unflatten(2, (tiles[1], region[1])).unflatten(1, (tiles[0], region[0]))
    tiled.add_(found.unflatten(1, region).unflatten(0, (batch, *tiles)).transpose(2, 3))
    return local


def local_values(qkv: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None) -> torch.Tensor | None:
    """The depthwise convolution of the values."""
    if weight is None:
        return None
    values = qkv[..., 2 * weight.size(0) :]
    if not torch.is_grad_enabled():
        # oneDNN takes longer over a part of a map than a copy of it does; for a backward pass it would be kept.
        values = values.contiguous()
    return _convolved(values, weight, bias)


def _convolved(values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    padding = (weight.size(2) // 2, weight.size(3) // 2)
    out = F.conv2d(values.permute(0, 3, 1, 2), weight, bias, padding=padding, groups=weight.size(0))
    return out.permute(0, 2, 3, 1)
