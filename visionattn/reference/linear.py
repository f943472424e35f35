"""Linear attention (arXiv 2006.16236) as equations 4 to 7 of the paper say it."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ._literal import Literal

__all__ = ["linear_attention", "naive_of"]


def linear_attention(module: Any, x: torch.Tensor) -> torch.Tensor:
    """The output of `visionattn.mixers.LinearAttention`."""
    heads, tokens = module.num_heads, x.flatten(1, 2)
    q, k, v = (part.unflatten(-1, (heads, -1)) for part in module.qkv(tokens).chunk(3, dim=-1))
    q, k = F.elu(q) + 1, F.elu(k) + 1
    summary = torch.einsum("bnhd,bnhe->bhde", k, v)
    total = torch.einsum("bnhd,bhd->bnh", q, k.sum(1)) + module.eps
    out = torch.einsum("bnhd,bhde->bnhe", q, summary) / total.unsqueeze(-1)
    return module.proj(out.flatten(2)).view(x.shape)


def naive_of(module: Any) -> nn.Module:
    """The literal module with the weights of a `LinearAttention`."""
    return Literal(linear_attention, module)
