"""DHVT's head-interacted attention (arXiv 2210.05958) step by step, all weights of attention held."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ._literal import Literal

__all__ = ["head_interaction_attention", "naive_of"]


def head_interaction_attention(module: Any, tokens: torch.Tensor, prefix: int = 0) -> torch.Tensor:
    """The output of `visionattn.mixers.HeadInteractionAttention` for tokens `(B, N, C)`, class token first."""
    heads, count = module.num_heads, tokens.shape[1]
    groups = tokens.unflatten(-1, (heads, -1)).transpose(1, 2)  # (B, heads, N, C / heads)
    summary = module.ht_proj(groups.mean(2))
    summary = F.gelu(module.ht_norm(summary.unflatten(-1, (heads, -1)))).flatten(2) + module.pos_embed
    x = torch.cat([tokens, summary], 1)
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in module.qkv(x).chunk(3, -1))
    weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
    out = module.proj((weights @ v).transpose(1, 2).flatten(2))
    tokens, summary = out[:, :count], out[:, count:]
    if prefix:
        tokens = torch.cat([tokens[:, :1] + summary.mean(1, keepdim=True), tokens[:, 1:]], 1)
    return tokens


def naive_of(module: Any) -> nn.Module:
    """The literal module with the weights of a `HeadInteractionAttention`."""
    return Literal(lambda m, x: head_interaction_attention(m, x.flatten(1, 2)).view(x.shape), module)
