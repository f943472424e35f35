"""Balanced multi-task attention (arXiv 2510.15527) written as its formulas read, with no eye on speed."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ._literal import Literal
from .coord import strip_gates


def balanced_attention(module: Any, x: torch.Tensor) -> torch.Tensor:
    """`visionattn.plugins.BalancedMultiTaskAttention` with the same weights: two attended maps, then their mix."""
    rows, columns = strip_gates(x, module.conv1, module.bn1, F.relu, module.conv_h, module.conv_w)
    coordinate = x * rows * columns
    channel = F.adaptive_avg_pool2d(x, 1).flatten(1)
    squeezed = x * module.fc2(F.relu(module.fc1(channel))).sigmoid()[:, :, None, None]
    mix = module.alpha.sigmoid()
    return mix * coordinate + (1 - mix) * squeezed


def naive_of(module: nn.Module) -> Literal:
    """The literal module with the weights of a `BalancedMultiTaskAttention`."""
    return Literal(balanced_attention, module)
