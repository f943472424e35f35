"""Pooling a map into one strip of rows and one of columns, and gating it by two such strips.

Eager PyTorch reduces a channels_last map along one side slowly and differentiates a broadcast product with many passes
over the map; here both take few. While compiling or exporting, the plain formulas are used: compilers fuse them.
"""

import torch

from ._axis_rules import refuses_gates
from ._dispatch import has_kernel
from ._eager import traced
from .axis_pool import axis_mean, axis_pools
from .layout import memory_format

__all__ = ["strip_gate", "strip_means"]


def strip_means(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean of each row and of each column. `(B, C, H, W) -> (B, C, H, 1), (B, C, 1, W)`, in the layout of `x`."""
    rows, columns = axis_pools(x, (("mean", 3), ("mean", 2)))
    return rows.unsqueeze(3), columns.unsqueeze(2)


def _refuses(x: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, offset: torch.Tensor | None = None) -> str:
    return refuses_gates(x, [rows, columns, *([] if offset is None else [offset])])


@has_kernel("axis", _refuses)
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
    if traced():
        gate = rows * columns
        return x * (gate if offset is None else gate + offset)
    return _StripGate.apply(x, rows, columns, offset)


class _StripGate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, rows, columns, offset):
        ctx.save_for_backward(x, rows, columns, offset)
        rows, columns = (strip.contiguous(memory_format=memory_format(x)) for strip in (rows, columns))
        out = torch.mul(rows, columns, out=torch.empty_like(x))
        if offset is not None:
            out += offset
        return out.mul_(x)

    @staticmethod
    def backward(ctx, dy):
        x, rows, columns, offset = ctx.saved_tensors
        rows, columns = (strip.contiguous(memory_format=memory_format(x)) for strip in (rows, columns))
        height, width = x.shape[2:]
        # In place, unless this is differentiated once more.
        mul = torch.mul if torch.is_grad_enabled() else torch.Tensor.mul_
        product = dy * x
        d_offset = None if offset is None else product.sum((2, 3), keepdim=True)
        d_rows = axis_mean(product * columns, 3).unsqueeze(3) * width
        d_columns = axis_mean(mul(product, rows), 2).unsqueeze(2) * height
        gate = rows * columns
        if offset is not None:
            gate = gate + offset
        return mul(gate, dy), d_rows, d_columns, d_offset
