"""Projections to gates."""

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["GateLinear"]


class GateLinear(nn.Module):
    """A projection whose bias sets the initial value of gates. `(..., dim) -> (..., out)`.

    Hosts give every `nn.Linear` their own start, with a bias of zero; they leave this one alone.

    Args:
        dim: Width.
        out: Number of gates.
        bias: Start of the bias.
    """

    def __init__(
        self,
        dim: int,
        out: int,
        bias: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out, dim, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.full((out,), bias, device=device, dtype=dtype))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight, self.bias)
