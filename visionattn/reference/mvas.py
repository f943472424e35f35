"""MVAS (arXiv 2407.11935) as its code takes the steps: one view after the other, with copies of the regions it sees."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ._literal import Literal

__all__ = ["multi_view_selection", "naive_of"]


def multi_view_selection(module: Any, x: torch.Tensor) -> torch.Tensor:
    """The output of `visionattn.mixers.MultiViewWindowAttention` of views `(B, V, H, W, C)` or a map."""
    if x.ndim == 4:
        return _one_view(module, x, x.unsqueeze(1))
    views = range(x.shape[1])
    if len(views) == 1:
        return _one_view(module, x[:, 0], x).unsqueeze(1)
    return torch.stack([_one_view(module, x[:, i], x[:, [j for j in views if j != i]]) for i in views], 1)


def _one_view(module: Any, x: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    batch, height, width, dim = x.shape
    side, heads = module.n_win, module.num_heads
    tall, wide = -(-height // side), -(-width // side)
    padding = (0, 0, 0, wide * side - width, 0, tall * side - height)
    x, others = F.pad(x, padding), F.pad(others, padding)
    q, k, v = x, others, others
    if module.qkv is not None:
        q, (k, v) = module.qkv(x).chunk(3, -1)[0], module.qkv(others).chunk(3, -1)[1:]
    q, k, v = (t.unflatten(-2, (side, wide)).unflatten(-4, (side, tall)).transpose(-4, -3) for t in (q, k, v))
    q = q.reshape(batch, side * side, tall * wide, dim)
    k, v = (t.reshape(batch, -1, tall * wide, dim) for t in (k, v))
    logits = (q.mean(2) * dim**-0.5) @ k.mean(2).mT
    chosen = logits.detach().topk(module.topk, dim=-1).indices
    images = torch.arange(batch).view(-1, 1, 1)
    q, k, v = (
        t.unflatten(-1, (heads, -1)).transpose(2, 3)
        for t in (q, k[images, chosen].flatten(2, 3), v[images, chosen].flatten(2, 3))
    )
    out = ((q * module.scale) @ k.mT).softmax(-1) @ v
    out = out.transpose(2, 3).flatten(3).view(batch, side, side, tall, wide, dim)
    out = out.transpose(2, 3).reshape(batch, side * tall, side * wide, dim)[:, :height, :width]
    return out if module.proj is None else module.proj(out)


def naive_of(module: Any) -> nn.Module:
    """The literal module with the weights of a `MultiViewWindowAttention`."""
    return Literal(multi_view_selection, module)
