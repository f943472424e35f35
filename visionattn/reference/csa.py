"""Class semantics-based attention step by step: each gate with a product of its own, and their sum."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ._literal import Literal

__all__ = ["class_semantic_attention", "naive_of"]


def class_semantic_attention(module: Any, x: torch.Tensor, semantics: torch.Tensor | None = None) -> torch.Tensor:
    """The output of `visionattn.plugins.ClassSemanticAttention` where both have the same positions."""
    semantics = x if semantics is None else semantics
    channel, position = module.channel, module.position
    a_c = torch.sigmoid(channel.fc2(F.relu(channel.fc1(semantics.flatten(2).mean(2)))))
    a_p = torch.sigmoid(position.conv2(F.relu(position.conv1(semantics))))
    return x * a_c.reshape(*a_c.shape, *(1,) * (x.ndim - 2)) + x * a_p


def naive_of(module: Any) -> nn.Module:
    """The literal module of a `ClassSemanticAttention`."""
    return Literal(class_semantic_attention, module)
