"""Select and Pack Attention (arXiv 2410.23608) as one attention of all tokens with a mask."""

from typing import Any

import torch
from torch import nn

from ._literal import Literal

__all__ = ["naive_of", "select_and_pack"]


def select_and_pack(module: Any, x: torch.Tensor) -> torch.Tensor:
    """The output of `visionattn.mixers.SelectPackAttention` without shift, noise and dropout."""
    batch, heads = len(x), module.num_heads
    tokens = x.flatten(1, 2)
    gate = torch.sigmoid(module.gate(tokens))
    kept = gate[..., 0] > module.threshold
    if module.packing == "batch":
        container = (kept.flatten().cumsum(0) - 1).view_as(kept) // module.container
    else:
        container = (kept.cumsum(1) - 1) // module.container
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in module.qkv(gate * tokens).chunk(3, -1))
    scores = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
    mask = (container[:, :, None] == container[:, None, :]) & kept[:, None, :]
    # Tokens that are not kept see nothing.
    scores = scores.masked_fill(~mask[:, None], torch.finfo(scores.dtype).min)
    out = module.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, -1, x.shape[-1]))
    return torch.where(kept[..., None], out, 0.0).view(x.shape)


def naive_of(module: Any) -> nn.Module:
    """The literal module with the weights of a `SelectPackAttention`."""
    return Literal(select_and_pack, module)
