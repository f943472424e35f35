"""ACAT's modulation step by step: a mask of the strongest channel, its product with the map, the sum."""

from typing import Any

import torch
from torch import nn

from ._literal import Literal

__all__ = ["modulation", "naive_of"]


def modulation(module: Any, x: torch.Tensor, saliency: torch.Tensor) -> torch.Tensor:
    """The output of `visionattn.plugins.SaliencyModulation` where the saliency has the map's size."""
    strongest = torch.max(saliency, 1)[0].unsqueeze(1)
    mask = torch.sigmoid(module.bn(module.conv(strongest)))
    return x + x * mask


def naive_of(module: Any) -> nn.Module:
    """The literal module of a `SaliencyModulation`."""
    return Literal(modulation, module)
