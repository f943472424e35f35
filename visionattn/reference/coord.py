"""Coordinate attention (arXiv 2103.02907) written as its formulas read, with no eye on speed."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ._literal import Literal

Layer = Callable[[torch.Tensor], torch.Tensor]


def strip_gates(
    x: torch.Tensor, conv1: Layer, bn1: Layer, act: Layer, conv_h: Layer, conv_w: Layer
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gates of the rows and of the columns, from strips pooled along the other axis and convolved as one."""
    height, width = x.shape[2:]
    rows = F.adaptive_avg_pool2d(x, (None, 1))
    columns = F.adaptive_avg_pool2d(x, (1, None)).permute(0, 1, 3, 2)
    strips = act(bn1(conv1(torch.cat((rows, columns), dim=2))))
    rows, columns = strips.split((height, width), dim=2)
    return conv_h(rows).sigmoid(), conv_w(columns.permute(0, 1, 3, 2)).sigmoid()


def hard_swish(x: torch.Tensor) -> torch.Tensor:
    return x * F.relu6(x + 3) / 6


def coordinate_attention(module: Any, x: torch.Tensor) -> torch.Tensor:
    """`visionattn.plugins.CoordinateAttention` with the same weights."""
    rows, columns = strip_gates(x, module.conv1, module.bn1, hard_swish, module.conv_h, module.conv_w)
    return x * columns * rows


def naive_of(module: nn.Module) -> Literal:
    """The literal module with the weights of a `CoordinateAttention`."""
    return Literal(coordinate_attention, module)
