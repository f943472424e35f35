"""A2N's blocks (arXiv 2104.09497) as the official code takes their steps, one layer after the other."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ._literal import Literal

__all__ = ["attention_in_attention", "naive_of", "pixel_attention"]


def attention_in_attention(module: Any, x: torch.Tensor) -> torch.Tensor:
    """The output of `visionattn.plugins.AttentionInAttention`."""
    branches = module.branches
    first = F.leaky_relu(module.conv_first(x), 0.2, inplace=True)
    pooled = F.adaptive_avg_pool2d(first, 1).flatten(1)
    weights = F.softmax(branches.fc2(F.relu(branches.fc1(pooled))) / branches.temperature, dim=1)
    layers = branches.attention
    gate = torch.sigmoid(layers.k2(F.leaky_relu(layers.k1(first), 0.2, inplace=True)))
    attention = layers.k4(torch.mul(layers.k3(first), gate))
    plain = branches.plain(first)
    mixed = attention * weights[:, 0].view(-1, 1, 1, 1) + plain * weights[:, 1].view(-1, 1, 1, 1)
    return module.conv_last(F.leaky_relu(mixed, 0.2, inplace=True)) + x


def pixel_attention(module: Any, x: torch.Tensor) -> torch.Tensor:
    """The output of `visionattn.plugins.PixelAttention`."""
    return torch.mul(x, torch.sigmoid(module.conv(x)))


def naive_of(module: Any) -> nn.Module:
    """The literal module with the weights of an `AttentionInAttention` or a `PixelAttention`."""
    return Literal(attention_in_attention if hasattr(module, "branches") else pixel_attention, module)
