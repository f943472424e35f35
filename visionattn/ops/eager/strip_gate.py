"""The gate of rows and columns; PyTorch differentiates such a broadcast product with many passes over the map."""

from typing import Any

import torch

from ._function import EagerFunction, Tensors
from .axis_pools import axis_mean

__all__ = ["StripGate"]


class StripGate(EagerFunction):
    """`x * (rows * columns + offset)`, with strips in the layout of x; saves only its arguments."""

    @staticmethod
    def compute(
        x: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, offset: torch.Tensor | None
    ) -> torch.Tensor:
        out = torch.mul(rows, columns, out=torch.empty_like(x))
        if offset is not None:
            out += offset
        return out.mul_(x)

    @staticmethod
    def gradients(ctx: Any, dy: torch.Tensor) -> Tensors:
        x, rows, columns, offset = ctx.saved_tensors
        height, width = x.shape[2:]
        product = dy * x
        d_offset = None if offset is None else product.sum((2, 3), keepdim=True)
        d_rows = axis_mean(product * columns, 3).unsqueeze(3) * width
        d_columns = axis_mean(product.mul_(rows), 2).unsqueeze(2) * height
        gate = rows * columns
        if offset is not None:
            gate += offset
        return gate.mul_(dy), d_rows, d_columns, d_offset
