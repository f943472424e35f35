"""SimAM (ICML 2021) written as its formulas read: the least energy of each neuron, and its inverse as importance."""

from typing import Any

import torch
from torch import nn

from ._literal import Literal

__all__ = ["naive_of", "simam"]


def simam(module: Any, x: torch.Tensor) -> torch.Tensor:
    """The output of `visionattn.plugins.SimAM`: equations 5 and 6 of the paper."""
    mean, count = x.mean(dim=(2, 3), keepdim=True), max(x[0, 0].numel() - 1, 1)
    squares = (x - mean) ** 2
    regular = squares.sum(dim=(2, 3), keepdim=True) / count + module.e_lambda
    energy = 4 * regular / (squares + 2 * regular)
    return torch.sigmoid(1 / energy) * x


def naive_of(module: Any) -> nn.Module:
    """The literal module of a `SimAM`."""
    return Literal(simam, module)
