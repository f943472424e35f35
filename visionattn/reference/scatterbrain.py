"""Scatterbrain (arXiv 2110.15343) as the dense matrix of weights that it stands for; windows."""

from math import sqrt
from typing import Any

import torch
from torch import nn

from ._literal import Literal

__all__ = ["naive_of", "scatterbrain"]


def scatterbrain(module: Any, x: torch.Tensor) -> torch.Tensor:
    """The output of `visionattn.mixers.ScatterbrainAttention` with `support="windows"` and `softmax_eps=0`."""
    heads, (height, width) = module.num_heads, x.shape[1:3]
    q, k, v = (p.unflatten(-1, (heads, -1)).transpose(1, 2) for p in module.qkv(x.flatten(1, 2)).chunk(3, dim=-1))
    q, k = module.q_norm(q), module.k_norm(k)
    scale = q.size(-1) ** -0.5
    row = torch.arange(height)[:, None].expand(height, width).flatten() // module.window[0]
    column = torch.arange(width).expand(height, width).flatten() // module.window[1]
    near = (row[:, None] == row) & (column[:, None] == column)
    weights = torch.where(
        near.to(x.device), (q @ k.mT * scale).exp(), _phi(module, q, scale) @ _phi(module, k, scale).mT
    )
    out = weights @ v / weights.sum(-1, keepdim=True)
    return module.proj(out.transpose(1, 2).flatten(2)).view(x.shape)


def _phi(module: Any, x: torch.Tensor, scale: float) -> torch.Tensor:
    """Features whose products are exp(s q k) on average."""
    u = sqrt(scale) * torch.einsum("bhnd,md->bhnm", x, module.projection)
    u = torch.cat([u, -u], -1) if module.cosh else u
    return (u - scale * x.square().sum(-1, keepdim=True) / 2).exp() / sqrt(u.size(-1))


def naive_of(module: Any) -> nn.Module:
    """The literal module with the weights of a `ScatterbrainAttention`."""
    return Literal(scatterbrain, module)
