"""VMoBA (arXiv 2506.23858) block by block, image by image; `threshold` within each head, as the paper chooses."""

from typing import Any

import torch
from torch import nn

from ._literal import Literal

__all__ = ["block_routed_attention", "naive_of"]


def block_routed_attention(module: Any, x: torch.Tensor) -> torch.Tensor:
    """The output of `visionattn.mixers.BlockRoutedAttention` with `select="threshold", scope="head_global"`."""
    heads, height, width = module.num_heads, x.size(1), x.size(2)
    rows, columns = module.block
    across = -(-width // columns)
    of_token = [y // rows * across + z // columns for y in range(height) for z in range(width)]
    groups = [[t for t, b in enumerate(of_token) if b == block] for block in range(max(of_token) + 1)]
    images = []
    for image in module.qkv(x.flatten(1, 2)):
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(0, 1) for part in image.chunk(3, dim=-1))
        q, k = module.q_norm(q), module.k_norm(k)
        gate = torch.stack([torch.einsum("hnd,hd->hn", q, k[:, group].mean(1)) for group in groups], -1).detach()
        chosen = torch.stack([_choose(one, of_token, module.threshold) for one in gate])
        outs, logs = [], []
        for block, group in enumerate(groups):
            scores = torch.einsum("hnd,hmd->hnm", q, k[:, group]) * q.size(-1) ** -0.5
            logs.append(scores.logsumexp(-1).masked_fill(~chosen[..., block], float("-inf")))
            outs.append(torch.einsum("hnm,hmd->hnd", scores.softmax(-1), v[:, group]))
        share = torch.stack(logs, -1).softmax(-1)
        out = torch.einsum("hnb,hnbd->hnd", share, torch.stack(outs, 2))
        images.append(out.transpose(0, 1).flatten(1))
    return module.proj(torch.stack(images)).view(x.shape)


def _choose(gate: torch.Tensor, of_token: list[int], threshold: float) -> torch.Tensor:
    """The blocks that each query of a head sees, `(N, blocks)`."""
    width = gate.max() - gate.min()
    share = (gate - gate.min()) / (width if width > 1e-6 else 1)
    chosen = torch.zeros_like(gate, dtype=torch.bool)
    chosen[range(len(of_token)), of_token] = True
    total = share.sum() + 1e-6
    need = max(0.0, threshold - (share[chosen].sum() / total).item())
    others = (~chosen).nonzero()
    order = share[~chosen].argsort(descending=True)
    sums = (share[~chosen][order] / total).cumsum(0)
    enough = (sums >= need).nonzero()
    for row, block in others[order[: enough[0].item() + 1 if len(enough) else None]].tolist():
        chosen[row, block] = True
    return chosen


def naive_of(module: Any) -> nn.Module:
    """The literal module with the weights of a `BlockRoutedAttention`."""
    return Literal(block_routed_attention, module)
