"""Pooling a map into one strip of rows and one of columns, and gating it by two such strips.

Eager PyTorch reduces a channels_last map along one side slowly and differentiates a broadcast product with many passes
over the map; here both take few. While compiling or exporting, the plain formulas are used: compilers fuse them.
"""

import torch
from torch.nn import functional as F

__all__ = ["strip_gate", "strip_means"]


def strip_means(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean of each row and of each column. `(B, C, H, W) -> (B, C, H, 1), (B, C, 1, W)`, in the layout of `x`."""
    if torch.compiler.is_compiling():
        return x.mean(3, keepdim=True), x.mean(2, keepdim=True)
    return _StripMeans.apply(x)


def strip_gate(
    x: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, offset: torch.Tensor | None = None
) -> torch.Tensor:
    """`x * (rows * columns + offset)`, in the dtype and layout of `x`.

    Args:
        x: Map, `(B, C, H, W)`.
        rows: `(B, C, H, 1)`.
        columns: `(B, C, 1, W)`.
        offset: `(B, C, 1, 1)`; none for zero.
    """
    rows, columns = rows.to(x.dtype), columns.to(x.dtype)
    offset = None if offset is None else offset.to(x.dtype)
    if torch.compiler.is_compiling():
        gate = rows * columns
        return x * (gate if offset is None else gate + offset)
    return _StripGate.apply(x, rows, columns, offset)


def _layout(x: torch.Tensor) -> torch.memory_format:
    nhwc = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if nhwc else torch.contiguous_format


def _mean(x: torch.Tensor, dim: int) -> torch.Tensor:
    # Reducing one side of a channels_last map, the pool is eight times as fast as the mean; both accumulate alike.
    if x.device.type == "cpu" and _layout(x) is torch.channels_last:
        return F.avg_pool2d(x, (x.shape[2], 1) if dim == 2 else (1, x.shape[3]))
    return x.mean(dim, keepdim=True)


class _StripMeans(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.layout, ctx.sides = _layout(x), x.shape[2:]
        return _mean(x, 3), _mean(x, 2)

    @staticmethod
    def backward(ctx, d_rows, d_columns):
        height, width = ctx.sides
        rows = (d_rows / width).contiguous(memory_format=ctx.layout)
        return rows + (d_columns / height).contiguous(memory_format=ctx.layout)


class _StripGate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, rows, columns, offset):
        ctx.save_for_backward(x, rows, columns, offset)
        rows, columns = (strip.contiguous(memory_format=_layout(x)) for strip in (rows, columns))
        out = torch.mul(rows, columns, out=torch.empty_like(x))
        if offset is not None:
            out += offset
        return out.mul_(x)

    @staticmethod
    def backward(ctx, dy):
        x, rows, columns, offset = ctx.saved_tensors
        rows, columns = (strip.contiguous(memory_format=_layout(x)) for strip in (rows, columns))
        height, width = x.shape[2:]
        # In place, unless this is differentiated once more.
        mul = torch.mul if torch.is_grad_enabled() else torch.Tensor.mul_
        product = dy * x
        d_offset = None if offset is None else product.sum((2, 3), keepdim=True)
        d_rows = _mean(product * columns, 3) * width
        d_columns = _mean(mul(product, rows), 2) * height
        gate = rows * columns
        if offset is not None:
            gate = gate + offset
        return mul(gate, dy), d_rows, d_columns, d_offset
