"""Optimised and Efficient attention (arXiv 2403.01643), a head at a time, all weights held."""

from typing import Any

import torch
from torch import nn

from ._literal import Literal

__all__ = ["key_value_free_attention", "naive_of"]


def key_value_free_attention(module: Any, x: torch.Tensor) -> torch.Tensor:
    """What `visionattn.mixers.KeyValueFreeAttention` gives."""
    tokens = x.flatten(1, 2)
    parts = (part.chunk(module.num_heads, -1) for part in (module.wq(tokens), module.wk(tokens), tokens))
    heads = [(q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v for q, k, v in zip(*parts, strict=True)]
    return module.wo(torch.cat(heads, -1)).view(x.shape)


def naive_of(module: Any) -> nn.Module:
    """The literal module with the weights of a `KeyValueFreeAttention`."""
    return Literal(key_value_free_attention, module)
