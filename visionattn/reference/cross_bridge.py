"""Gated cross attention between two encoders (arXiv 2502.08213), in the steps of its formula."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ._literal import Literal

__all__ = ["gated_cross_attention", "naive_of"]


def gated_cross_attention(module: Any, x: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """The output of `visionattn.mixers.GatedCrossAttention` of tokens without a mask and dropout."""
    key, value = module.kv(source).chunk(2, -1)
    q, k, v = (part.unflatten(-1, (module.num_heads, -1)).transpose(1, 2) for part in (module.q(x), key, value))
    read = ((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
    first, _, last = module.adapter
    return x + torch.sigmoid(module.gate(x)) * last(F.gelu(first(read)))


def naive_of(module: Any) -> nn.Module:
    """The literal module with the weights of a `GatedCrossAttention`."""
    return Literal(gated_cross_attention, module)
