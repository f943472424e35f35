"""Star attention on maps (arXiv 2411.17116), window by window."""

from typing import Any

import torch
from torch import nn

from ._literal import Literal

__all__ = ["naive_of", "star_attention"]

LOOPS = True


def _pooled(x: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Means of patches that cover the map, `(B, rows * columns, C)`."""
    height, width = x.shape[1:3]
    tokens = []
    for i in range(rows):
        for j in range(columns):
            top, bottom = i * height // rows, -(-(i + 1) * height // rows)
            left, right = j * width // columns, -(-(j + 1) * width // columns)
            tokens.append(x[:, top:bottom, left:right].mean((1, 2)))
    return torch.stack(tokens, 1)


def star_attention(module: Any, x: torch.Tensor) -> torch.Tensor:
    """The output of `visionattn.mixers.StarAttention`."""
    _, height, width, dim = x.shape
    (tall, wide), heads = module.window, module.num_heads

    def parts(tokens: torch.Tensor) -> list[torch.Tensor]:
        return [part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in module.qkv(tokens).chunk(3, -1)]

    middle = (height // 2 // tall * tall, width // 2 // wide * wide)
    if module.anchor == "pool":
        anchor = _pooled(x, *module.anchor_size)
    else:
        anchor = x[:, middle[0] : middle[0] + tall, middle[1] : middle[1] + wide].flatten(1, 2)
    out = torch.empty_like(x)
    for top in range(0, height, tall):
        for left in range(0, width, wide):
            place = (slice(None), slice(top, top + tall), slice(left, left + wide))
            window = x[place]
            q, k, v = parts(window.flatten(1, 2))
            if module.anchor == "pool" or (top, left) != middle:
                _, more_k, more_v = parts(anchor)
                k, v = torch.cat([k, more_k], 2), torch.cat([v, more_v], 2)
            weights = (q @ k.mT / (dim // heads) ** 0.5).softmax(-1)
            out[place] = (weights @ v).transpose(1, 2).reshape(window.shape)
    return module.proj(out)


def naive_of(module: Any) -> nn.Module:
    """The literal module with the weights of a `StarAttention`."""
    return Literal(star_attention, module)
