"""Star attention on maps (arXiv 2411.17116): blocks, each with the anchor before its keys, in one product."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ._literal import Literal

__all__ = ["naive_of", "star_attention"]


def _blocks(x: torch.Tensor, window: tuple[int, int]) -> torch.Tensor:
    """Windows of a map that they divide, `(B, H, W, C) -> (B, U, n, C)`."""
    parts = x.unflatten(2, (-1, window[1])).unflatten(1, (-1, window[0])).transpose(2, 3)
    return parts.flatten(3, 4).flatten(1, 2)


def star_attention(module: Any, x: torch.Tensor) -> torch.Tensor:
    """The output of `visionattn.mixers.StarAttention`."""
    batch, height, width, dim = x.shape
    (tall, wide), heads = module.window, module.num_heads
    rows, columns = -(-height // tall), -(-width // wide)
    margins = (0, columns * wide - width, 0, rows * tall - height)
    blocks = _blocks(F.pad(x, (0, 0, *margins)), module.window)
    seen = _blocks(F.pad(x.new_ones(1, height, width), margins).unsqueeze(-1), module.window)[0, :, :, 0] > 0
    middle = height // 2 // tall * columns + width // 2 // wide
    if module.anchor == "pool":
        anchor = F.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), module.anchor_size).flatten(2).mT
        anchor_seen = seen.new_ones(len(seen), anchor.shape[1])
    else:
        anchor = blocks[:, middle]
        anchor_seen = seen[middle] & (torch.arange(len(seen), device=x.device) != middle).unsqueeze(1)
    context = torch.cat([anchor.unsqueeze(1).expand(-1, len(seen), -1, -1), blocks], 2)
    visible = torch.cat([anchor_seen, seen], 1)

    def part(tokens: torch.Tensor, number: int) -> torch.Tensor:
        bias = None if module.qkv.bias is None else module.qkv.bias.chunk(3)[number]
        return F.linear(tokens, module.qkv.weight.chunk(3)[number], bias).unflatten(-1, (heads, -1)).transpose(2, 3)

    q, k, v = part(blocks, 0), part(context, 1), part(context, 2)
    scores = (q @ k.mT / (dim // heads) ** 0.5).masked_fill(~visible[:, None, None], float("-inf"))
    out = (scores.softmax(-1) @ v).transpose(2, 3).flatten(3)
    out = out.view(batch, rows, columns, tall, wide, dim).transpose(2, 3).flatten(3, 4).flatten(1, 2)
    return module.proj(out[:, :height, :width])


def naive_of(module: Any) -> nn.Module:
    """The literal module with the weights of a `StarAttention`."""
    return Literal(star_attention, module)
