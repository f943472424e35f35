"""MHE attention (arXiv 2310.07911) as the paper says it: each head with queries, keys and values of its own."""

from typing import Any

import torch
from torch import nn

from ._literal import Literal

__all__ = ["mhe_attention", "naive_of"]


def mhe_attention(module: Any, x: torch.Tensor) -> torch.Tensor:
    """The output of `visionattn.mixers.MultiHeadEmbeddingAttention`."""
    tokens, heads = x.flatten(1, 2), []
    for number in range(module.num_heads):
        parts = []
        for layer, embeddings in ((module.q, module.embed_q), (module.k, module.embed_k), (module.v, module.embed_v)):
            part, embedding = layer(tokens), embeddings[number]
            parts.append(part * (embedding + 1) if module.mode == "mul" else part + embedding)
        q, k, v = parts
        heads.append((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v)
    return module.proj(torch.cat(heads, -1)).view(x.shape)


def naive_of(module: Any) -> nn.Module:
    """The literal module with the weights of a `MultiHeadEmbeddingAttention`."""
    return Literal(mhe_attention, module)
