"""Mixtures of heads (arXiv 2410.11842) as their authors write them down: gates apart, neighbours unfolded."""

from math import log2
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ._literal import Literal

__all__ = ["aggregated_attention", "attention", "head_gates", "naive_of"]


def head_gates(module: Any, x: torch.Tensor) -> torch.Tensor:
    """The factor of each head for each token, `(B, N, C) -> (B, N, heads)`."""
    shared, routed = module.shared_heads, module.routed_heads
    gates = []
    if shared == 1:
        gates.append(torch.ones_like(x[..., :1]))
    elif shared:
        gates.append(module.wg_1(x).softmax(-1) * shared)
    if routed:
        shares = module.wg(x).softmax(-1)
        mask = F.one_hot(shares.topk(routed, dim=-1).indices, shares.size(-1)).sum(-2)
        kept = shares * mask
        gates.append(kept / kept.sum(-1, keepdim=True).clamp(min=torch.finfo(x.dtype).eps) * routed)
    if len(gates) == 2:
        balance = module.wg_0(x).softmax(-1) * 2
        gates = [gates[0] * balance[..., :1], gates[1] * balance[..., 1:]]
    return torch.cat(gates, -1)


def attention(module: Any, x: torch.Tensor) -> torch.Tensor:
    """The output of `visionattn.mixers.MixtureOfHeadAttention`."""
    batch, height, width, dim = x.shape
    tokens, heads = x.flatten(1, 2), module.num_heads
    q, k, v = module.qkv(tokens).reshape(batch, -1, 3, heads, dim // heads).permute(2, 0, 3, 1, 4)
    if module.cosine:
        q = (F.normalize(q, dim=-1) + module.query_embedding) * F.softplus(module.temperature)
        scores = q * torch.tensor(height * width, dtype=x.dtype).log() @ F.normalize(k, dim=-1).transpose(-2, -1)
        scores = scores + position_bias(module, (height, width), (height, width), x)
    else:
        scores = q @ k.transpose(-2, -1) * (dim // heads) ** -0.5
    out = (scores.softmax(-1) @ v).transpose(1, 2) * head_gates(module, tokens).unsqueeze(-1)
    return module.proj(out.flatten(2)).view(x.shape)


def aggregated_attention(module: Any, x: torch.Tensor) -> torch.Tensor:
    """The output of `visionattn.mixers.MixtureOfHeadAggregatedAttention`."""
    batch, height, width, dim = x.shape
    tokens, heads, window = x.flatten(1, 2), module.num_heads, module.window_size
    count, head_dim, places = height * width, dim // heads, window**2
    cells = (max(height // module.sr_ratio, 1), max(width // module.sr_ratio, 1))
    inside = F.unfold(torch.ones(1, 1, height, width, dtype=x.dtype), window, padding=window // 2).view(places, count).T
    length = (inside.sum(1) + cells[0] * cells[1]).log().view(1, 1, count, 1)
    q = F.normalize(module.q(tokens).view(batch, count, heads, head_dim).permute(0, 2, 1, 3), dim=-1)
    scaled = (q + module.query_embedding) * F.softplus(module.temperature) * length
    k, v = module.kv(tokens).chunk(2, dim=-1)
    k = F.normalize(k.view(batch, count, heads, head_dim), dim=-1).flatten(2)
    unfolded = F.unfold(torch.cat((k, v), -1).mT.reshape(batch, -1, height, width), window, padding=window // 2)
    near_k, near_v = unfolded.view(batch, 2 * heads, head_dim, places, count).permute(0, 1, 4, 2, 3).chunk(2, dim=1)
    near = (scaled.unsqueeze(-2) @ near_k).squeeze(-2) + module.relative_pos_bias_local.unsqueeze(1)
    near = near.masked_fill(inside == 0, float("-inf"))
    pooled = F.adaptive_avg_pool2d(F.gelu(module.sr(x.permute(0, 3, 1, 2))), cells).flatten(2).transpose(1, 2)
    pooled = module.kv(module.norm(pooled)).view(batch, -1, 2 * heads, head_dim).permute(0, 2, 1, 3)
    far_k, far_v = pooled.chunk(2, dim=1)
    far = scaled @ F.normalize(far_k, dim=-1).transpose(-2, -1) + position_bias(module, (height, width), cells, x)
    near, far = torch.cat((near, far), -1).softmax(-1).split([places, cells[0] * cells[1]], dim=-1)
    near = near + q @ module.learnable_tokens + module.learnable_bias
    out = (near.unsqueeze(-2) @ near_v.transpose(-2, -1)).squeeze(-2) + far @ far_v
    out = out.transpose(1, 2) * head_gates(module, tokens).unsqueeze(-1)
    return module.proj(out.flatten(2)).view(x.shape)


def position_bias(module: Any, grid: tuple[int, int], cells: tuple[int, int], x: torch.Tensor) -> torch.Tensor:
    """`(heads, H * W, H' * W')`: the MLP on the different pairs of distances, and a table of which pair is where."""
    axes = []
    for side, cell, nominal in zip(grid, cells, module.grid_size or grid, strict=True):
        places = torch.arange(side, dtype=torch.float64)
        middles = F.adaptive_avg_pool1d(places.unsqueeze(0), cell).squeeze(0)
        axes.append((places.unsqueeze(1) - middles) / max(nominal - 1, 1) * 8)
    rows = axes[0][:, None, :, None].expand(-1, grid[1], -1, cells[1])
    columns = axes[1][None, :, None, :].expand(grid[0], -1, cells[0], -1)
    pairs, table = torch.unique(torch.stack((rows, columns), -1).reshape(-1, 2), return_inverse=True, dim=0)
    pairs = (pairs.sign() * (pairs.abs() + 1).log2() / log2(8)).to(x.dtype)
    bias: torch.Tensor = module.cpb_fc2(F.relu(module.cpb_fc1(pairs)))[table].T
    return bias.reshape(-1, grid[0] * grid[1], cells[0] * cells[1])


def naive_of(module: Any) -> nn.Module:
    """The literal module with the weights of either mixture of heads."""
    return Literal(aggregated_attention if hasattr(module, "sr") else attention, module)
