"""Optimised, Efficient and Super attention (arXiv 2403.01643), a head at a time, all weights held."""

from typing import Any

import torch
from torch import nn

from ._literal import Literal

__all__ = ["key_value_free_attention", "naive_of"]


def key_value_free_attention(module: Any, x: torch.Tensor) -> torch.Tensor:
    """The output of `visionattn.mixers.KeyValueFreeAttention`, and `AlignedAttention` on the map it is made for."""
    tokens, heads = x.flatten(1, 2), []
    hidden = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool, device=x.device).triu(1)
    for number in range(module.num_heads):
        q, k, v = (part.chunk(module.num_heads, -1)[number] for part in (module.wq(tokens), module.wk(tokens), tokens))
        if hasattr(module, "align"):
            own = module.align.weight.ndim == 3
            matrix = module.align.weight[number] if own else module.align.weight
            matrix = matrix.masked_fill(hidden, 0) if module.causal else matrix
            v = torch.einsum("mn,bnd->bmd", matrix, v)
            if module.align.bias is not None:
                v = v + (module.align.bias[number] if own else module.align.bias)[:, None]
        scores = q @ k.mT * q.shape[-1] ** -0.5
        if module.causal:
            scores = scores.masked_fill(hidden, float("-inf"))
        heads.append(scores.softmax(-1) @ v)
    return module.wo(torch.cat(heads, -1)).view(x.shape)


def naive_of(module: Any) -> nn.Module:
    """The literal module with the weights of a `KeyValueFreeAttention` or an `AlignedAttention`."""
    return Literal(key_value_free_attention, module)
