"""Halo attention block by block, as its formula says it."""

from typing import Any

import torch
from torch import nn

from ._literal import Literal

__all__ = ["naive_halo", "naive_of"]


def naive_halo(mixer: Any, x: torch.Tensor) -> torch.Tensor:
    """The output of a `HaloAttention` for `(B, H, W, C)`: the queries of a block, and the keys in and around it."""
    sides, block, halo, heads = x.shape[1:3], mixer.block_size, mixer.halo_size, mixer.num_heads
    q = (x @ mixer.q.weight.T).unflatten(-1, (heads, -1))
    k, v = (x @ mixer.kv.weight[:, :, 0, 0].T).unflatten(-1, (heads, 2, -1)).unbind(-2)
    out = torch.zeros_like(q)
    for top in range(0, sides[0], block):
        for left in range(0, sides[1], block):
            at = [range(start, min(start + block, side)) for start, side in zip((top, left), sides, strict=True)]
            near = [
                range(max(own.start - halo, 0), min(own.start + block + halo, side))
                for own, side in zip(at, sides, strict=True)
            ]
            queries = q[:, at[0].start : at[0].stop, at[1].start : at[1].stop]
            keys, values = (t[:, near[0].start : near[0].stop, near[1].start : near[1].stop] for t in (k, v))
            logits = torch.einsum("byxhd,bijhd->bhyxij", queries, keys) * q.shape[-1] ** -0.5
            rows, columns = (
                table[torch.tensor([[key - query + halo + block + 2 * halo - 1 for key in near[a]] for query in at[a]])]
                for a, table in enumerate((mixer.pos_embed.height_rel, mixer.pos_embed.width_rel))
            )
            logits = logits + torch.einsum("byxhd,yid->bhyxi", queries, rows).unsqueeze(-1)
            logits = logits + torch.einsum("byxhd,xjd->bhyxj", queries, columns).unsqueeze(-2)
            weights = logits.flatten(4).softmax(-1).view(logits.shape)
            out[:, at[0].start : at[0].stop, at[1].start : at[1].stop] = torch.einsum(
                "bhyxij,bijhd->byxhd", weights, values
            )
    return mixer.proj(out.flatten(3))


def naive_of(module: Any) -> nn.Module:
    """The literal module with the weights of a `HaloAttention`."""
    return Literal(naive_halo, module)
