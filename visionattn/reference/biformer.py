"""Bi-level routing attention (arXiv 2303.08810) as its code takes its steps: regions are cut first, every query region
gets copies of the keys and values of its top regions, picked out of a view with one copy of the map a region, and the
weights of all pairs are kept."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ._literal import Literal

__all__ = ["bi_level_routing_attention", "lepe_attention", "naive_of"]


def bi_level_routing_attention(module: Any, x: torch.Tensor) -> torch.Tensor:
    """The output of `visionattn.mixers.BiLevelRoutingAttention` without dropout, for sides that `n_win` divides."""
    batch, height, width, dim = x.shape
    side, heads, topk = module.n_win, module.num_heads, module.topk
    tall, wide = -(-height // side), -(-width // side)
    x = F.pad(x, (0, 0, 0, wide * side - width, 0, tall * side - height))
    x = x.view(batch, side, tall, side, wide, dim).permute(0, 1, 3, 2, 4, 5).flatten(1, 2)
    q, kv = module.qkv(x).split([dim, 2 * dim], dim=-1)
    k, v = kv.chunk(2, dim=-1)
    local = v.unflatten(1, (side, side)).permute(0, 5, 1, 3, 2, 4).reshape(batch, dim, side * tall, side * wide)
    with torch.no_grad():
        logits = (q.mean((2, 3)) * dim**-0.5) @ k.mean((2, 3)).mT
        chosen = logits.topk(topk, dim=-1).indices
    tokens, regions = tall * wide, side * side
    everywhere = kv.reshape(batch, 1, regions, tokens, 2 * dim).expand(-1, regions, -1, -1, -1)
    picked = everywhere.gather(2, chosen.view(batch, regions, topk, 1, 1).expand(-1, -1, -1, tokens, 2 * dim))
    k, v = picked.view(batch * regions, topk * tokens, 2, heads, dim // heads).unbind(2)
    q = q.reshape(batch * regions, tokens, heads, dim // heads).transpose(1, 2).contiguous()
    k, v = k.permute(0, 2, 3, 1).contiguous(), v.transpose(1, 2).contiguous()
    out = ((q * module.scale) @ k).softmax(-1) @ v
    out = out.transpose(1, 2).reshape(batch, side, side, tall, wide, dim)
    out = out.transpose(2, 3).reshape(batch, side * tall, side * wide, dim)
    if module.lepe is not None:
        out = out + module.lepe(local).permute(0, 2, 3, 1)
    return module.proj(out[:, :height, :width])


def lepe_attention(module: Any, x: torch.Tensor) -> torch.Tensor:
    """The output of `visionattn.mixers.LePEAttention` without dropout."""
    q, k, v = module.qkv(x.flatten(1, 2)).unflatten(-1, (3, module.num_heads, -1)).permute(2, 0, 3, 1, 4)
    out = (q * q.size(-1) ** -0.5 @ k.mT).softmax(-1) @ v
    local = module.lepe(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    return module.proj(out.transpose(1, 2).reshape(x.shape) + local)


def naive_of(module: Any) -> nn.Module:
    """The literal module with the weights of a `BiLevelRoutingAttention` or `LePEAttention`."""
    return Literal(bi_level_routing_attention if hasattr(module, "n_win") else lepe_attention, module)
