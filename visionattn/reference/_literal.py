"""A literal formula as a module."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import nn

__all__ = ["Literal"]


class Literal(nn.Module):
    """Computes a formula with the weights of a module, which it copies.

    Args:
        formula: Called with the module and the input, or both inputs of a gate that takes two.
        module: The module.
    """

    def __init__(self, formula: Callable[..., torch.Tensor], module: Any) -> None:
        super().__init__()
        self.formula = formula
        self.module = deepcopy(module)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.formula(self.module, *inputs)
