"""Halo attention position by position, as its formula says it."""

import torch
from torch import nn

__all__ = ["naive_halo"]


def naive_halo(mixer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What a `HaloAttention` gives for `(B, H, W, C)`, by one small softmax for each query and head."""
    height, width, dim = x.shape[1:]
    block, halo, heads = mixer.block_size, mixer.halo_size, mixer.num_heads
    middle = block + 2 * halo - 1
    q = x @ mixer.q.weight.T
    kv = x @ mixer.kv.weight[:, :, 0, 0].T
    out = torch.zeros_like(x)
    size = dim // heads
    for head in range(heads):
        own_q = q[..., head * size : (head + 1) * size]
        k, v = kv[..., 2 * head * size : 2 * (head + 1) * size].split(size, dim=-1)
        for y in range(height):
            for x_ in range(width):
                top, left = y // block * block - halo, x_ // block * block - halo
                query, logits, values = own_q[:, y, x_], [], []
                for i in range(max(top, 0), min(top + block + 2 * halo, height)):
                    for j in range(max(left, 0), min(left + block + 2 * halo, width)):
                        row = mixer.pos_embed.height_rel[(i - top) - y % block + middle]
                        column = mixer.pos_embed.width_rel[(j - left) - x_ % block + middle]
                        logits.append((query * (k[:, i, j] * size**-0.5 + row + column)).sum(-1))
                        values.append(v[:, i, j])
                weights = torch.stack(logits, dim=-1).softmax(-1)
                mixed = (weights.unsqueeze(-1) * torch.stack(values, dim=1)).sum(1)
                out[:, y, x_, head * size : (head + 1) * size] = mixed
    return out @ mixer.proj.weight.T + mixer.proj.bias
