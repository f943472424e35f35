"""Channel attention of DaViT as coded officially, and with the ordinary roles, group by group."""

import torch

from ._literal import Literal


def channel_attention(x, qkv, proj, num_heads, scale):
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


def naive_of(module):
    """The literal module with the weights of a `ChannelAttention`."""
    return Literal(
        lambda m, x: channel_attention(x.flatten(1, 2), m.qkv, m.proj, m.num_heads, m.scale).view(x.shape), module
    )
