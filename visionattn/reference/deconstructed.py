"""Deconstructed attention (arXiv 2510.11602) in the steps of the paper's formulas, all pairs of tokens at once."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ._literal import Literal

__all__ = ["deconstructed_attention", "naive_of"]


def deconstructed_attention(module: Any, x: torch.Tensor, source: torch.Tensor | None = None) -> torch.Tensor:
    """The output of `visionattn.mixers.DeconstructedAttention`."""
    tokens = x.flatten(1, 2)
    if module.kind == "mlp":
        return module.down(F.silu(module.gate(tokens)) * module.up(tokens)).view(x.shape)
    count = tokens.shape[1]
    if module.kind == "uniform":
        v = module.v(tokens)
        mixed = v.new_full((count, count), 1 / count) @ v
        return module.proj(mixed).view(x.shape)
    other = tokens if source is None else source.flatten(1, 2).expand_as(tokens)
    q, k, _ = module.qkv(other).chunk(3, -1)
    v = module.qkv(tokens).chunk(3, -1)[2]
    q, k, v = (part.unflatten(-1, (module.num_heads, -1)).transpose(1, 2) for part in (q, k, v))
    if module.kind == "self_gate":
        scores = torch.diagonal(F.silu(q) @ k.mT, dim1=-2, dim2=-1) * q.size(-1) ** -0.5
        rows = scores.softmax(-1).unsqueeze(-2).repeat(1, 1, count, 1)
    else:
        scores = q @ k.mT * q.size(-1) ** -0.5
        if module.kind == "taylor":
            rows = 1 + scores + scores.square() / 2
            rows = rows / rows.sum(-1, keepdim=True)
        else:
            rows = F.relu(scores) / count if module.kind == "relu" else scores.softmax(-1)
    return module.proj((rows @ v).transpose(1, 2).flatten(2)).view(x.shape)


def naive_of(module: Any) -> nn.Module:
    """The literal module with the weights of a `DeconstructedAttention`."""
    return Literal(deconstructed_attention, module)
