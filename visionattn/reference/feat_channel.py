"""FEAT's channel attention (arXiv 2506.04956) on maps of channels, as in the official code."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ._literal import Literal

__all__ = ["channel_attention", "naive_of"]


def channel_attention(module: Any, x: torch.Tensor, first: torch.Tensor | None = None) -> torch.Tensor:
    """The output of `visionattn.mixers.GlobalChannelAttention`."""
    maps = x.permute(0, 3, 1, 2)
    q, k, v = module.qkv_dwconv(module.qkv(maps)).chunk(3, 1)
    added = None
    if first is not None:
        seen = first.permute(0, 3, 1, 2)
        v, added = v + module.alpha[0] * seen, module.alpha[1] * (seen - v)
    q, k, v = (part.flatten(2).unflatten(1, (module.num_heads, -1)) for part in (q, k, v))
    q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    out = ((q @ k.mT * module.temperature).softmax(-1) @ v).flatten(1, 2).view(maps.shape)
    return module.project_out(out if added is None else out + added).permute(0, 2, 3, 1)


def naive_of(module: Any) -> nn.Module:
    """The literal module with the weights of a `GlobalChannelAttention`."""
    return Literal(channel_attention, module)
