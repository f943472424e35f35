"""SpargeAttn (arXiv 2502.18137): the map block by block, then a softmax over the pairs that it leaves; `topk` only."""

from typing import Any

import torch
from torch import nn

from visionattn.utils.arguments import pair

from ._literal import Literal

__all__ = ["naive_of", "sparge_attention"]


def sparge_attention(module: Any, x: torch.Tensor) -> torch.Tensor:
    """The output of `visionattn.mixers.SpargeAttention` with `topk` or by default."""
    heads, settings = module.num_heads, module.sparse
    sides, share = pair("block", settings.block), 0.5 if settings.topk is None else settings.topk
    limit = -0.1 if settings.sim_threshold is None else settings.sim_threshold
    q, k, v = (p.unflatten(-1, (heads, -1)).transpose(1, 2) for p in module.qkv(x.flatten(1, 2)).chunk(3, dim=-1))
    q, k = module.q_norm(q), module.k_norm(k)
    scale = q.size(-1) ** -0.5
    with torch.no_grad():
        q_blocks, k_blocks = q.split(sides[0], 2), (k - k.mean(2, keepdim=True)).split(sides[1], 2)
        # A last block that is not full never counts as alike.
        alike = [
            torch.stack([(_cosine(part) > limit) & (part.size(2) == side) for part in parts], -1)
            for parts, side in ((q_blocks, sides[0]), (k_blocks, sides[1]))
        ]
        q_mean, k_mean = (torch.stack([part.mean(2) for part in parts], 2) for parts in (q_blocks, k_blocks))
        pooled = torch.einsum("bhqd,bhkd->bhqk", q_mean, k_mean) * scale
        pooled = pooled.masked_fill(~alike[1].unsqueeze(2), float("-inf")).softmax(-1)
        rank = pooled.argsort(-1, descending=True).argsort(-1)
        seen = (rank < max(int(share * k_mean.size(2)), 1)) | ~alike[1].unsqueeze(2) | ~alike[0].unsqueeze(3)
        mask = seen.repeat_interleave(sides[0], 2)[:, :, : q.size(2)].repeat_interleave(sides[1], 3)[..., : k.size(2)]
    scores = torch.einsum("bhnd,bhmd->bhnm", q, k) * scale
    out = torch.einsum("bhnm,bhmd->bnhd", scores.masked_fill(~mask, float("-inf")).softmax(-1), v)
    return module.proj(out.flatten(2)).view(x.shape)


def _cosine(block: torch.Tensor) -> torch.Tensor:
    """The mean cosine of all pairs of tokens, `(B, heads, n, d) -> (B, heads)`."""
    unit = block / block.norm(dim=-1, keepdim=True)
    return (unit @ unit.mT).mean((-2, -1))


def naive_of(module: Any) -> nn.Module:
    """The literal module with the weights of a `SpargeAttention`."""
    return Literal(sparge_attention, module)
