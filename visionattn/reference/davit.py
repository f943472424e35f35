"""Channel attention of DaViT as coded officially, and with the ordinary roles, group by group."""

from typing import Any

import torch
from torch import nn

from ._literal import Literal


def channel_attention(x: torch.Tensor, qkv: nn.Module, proj: nn.Module, num_heads: int, scale: str) -> torch.Tensor:
    """`x` is `(B, N, C)`."""
    tokens, dim = x.shape[1:]
    q, k, v = qkv(x).chunk(3, -1)
    out = []
    for q_, k_, v_ in zip(*(part.chunk(num_heads, -1) for part in (q, k, v)), strict=True):
        if scale == "dim":
            weights = ((k_ * (dim // num_heads) ** -0.5).mT @ v_).softmax(-1)
            out.append((weights @ q_.mT).mT)
        else:
            weights = ((q_ * tokens**-0.5).mT @ k_).softmax(-1)
            out.append((weights @ v_.mT).mT)
    return proj(torch.cat(out, -1))


def naive_of(module: nn.Module) -> Literal:
    """The literal module with the weights of a `ChannelAttention`."""

    def formula(mixer: Any, x: torch.Tensor) -> torch.Tensor:
        out = channel_attention(x.flatten(1, 2), mixer.qkv, mixer.proj, mixer.num_heads, mixer.scale)
        return out.view(x.shape)

    return Literal(formula, module)
