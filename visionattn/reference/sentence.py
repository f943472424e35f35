"""Sentence attention as its authors wrote it down: layer by layer, the gate as a map of one position."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ._literal import Literal

__all__ = ["naive_of", "sentence_attention"]


def sentence_attention(module: Any, x: torch.Tensor, sentence: torch.Tensor) -> torch.Tensor:
    """The output of `visionattn.plugins.SentenceAttention`."""
    hidden = F.relu(module.norm(module.fc1(sentence)))
    gate = torch.softmax(module.fc2(hidden), dim=1) * module.factor
    return x * gate.unsqueeze(2).unsqueeze(3).expand_as(x)


def naive_of(module: Any) -> nn.Module:
    """The literal module of a `SentenceAttention`."""
    return Literal(sentence_attention, module)
