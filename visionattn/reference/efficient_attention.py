"""Efficient attention (arXiv 1812.01243) as its official code takes its steps: head after head."""

from typing import Any

import torch
from torch import nn

from ._literal import Literal

__all__ = ["efficient_attention", "naive_of"]


def efficient_attention(module: Any, x: torch.Tensor) -> torch.Tensor:
    """The output of `visionattn.plugins.EfficientAttention`."""
    heads, count = module.head_count, x.shape[2] * x.shape[3]
    parts = (layer(x).flatten(2).chunk(heads, dim=1) for layer in (module.keys, module.queries, module.values))
    outputs = []
    for key, query, value in zip(*parts, strict=True):
        if module.normalization == "softmax":
            key, query = key.softmax(2), query.softmax(1)
        else:
            key, query = key / count**0.5, query / count**0.5
        context = key @ value.transpose(1, 2)
        outputs.append((context.transpose(1, 2) @ query).view(x.shape[0], -1, *x.shape[2:]))
    out = module.reprojection(torch.cat(outputs, dim=1))
    return out + x if module.residual else out


def naive_of(module: Any) -> nn.Module:
    """The literal module with the weights of an `EfficientAttention`."""
    return Literal(efficient_attention, module)
