"""Neural Attention (arXiv 2502.17206) step by step: a pair of each query and key, put through the score network."""

from typing import Any

import torch
from torch import nn

from ._literal import Literal

__all__ = ["naive_of", "neural_attention"]


def neural_attention(module: Any, x: torch.Tensor) -> torch.Tensor:
    """The output of `visionattn.mixers.NeuralAttention`."""
    tokens = x.flatten(1, 2)
    count = tokens.shape[1]
    q, k, v = (part.unflatten(-1, (module.num_heads, -1)).transpose(1, 2) for part in module.qkv(tokens).chunk(3, -1))
    q, k = module.q_proj(q), module.k_proj(k)
    pairs = torch.cat([q.unsqueeze(3).expand(-1, -1, -1, count, -1), k.unsqueeze(2).expand(-1, -1, count, -1, -1)], -1)
    scores = module.linear3(module.linear2(module.linear1(pairs).relu()).relu()).squeeze(-1)
    if module.causal:
        hidden = torch.ones(count, count, dtype=torch.bool, device=x.device).triu(1)
        scores = scores.masked_fill(hidden, float("-inf"))
    out = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
    return module.proj(out).view(x.shape)


def naive_of(module: Any) -> nn.Module:
    """The literal module with the weights of a `NeuralAttention`."""
    return Literal(neural_attention, module)
