"""Rank-augmented linear attention (arXiv 2411.07635) as its authors write it down, on maps `(B, C, H, W)`."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ._literal import Literal

__all__ = ["naive_of", "rank_augmented", "rotate", "rotation"]


def rotation(height: int, width: int, head_dim: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sines and cosines `(H * W, head_dim)`: each angle twice, rows in the first half, columns in the second."""
    angle = 1.0 / 10000 ** torch.linspace(0, 1, head_dim // 4, dtype=like.dtype, device=like.device)
    angle = angle.unsqueeze(-1).repeat(1, 2).flatten()
    index_h, index_w = (torch.arange(side, dtype=like.dtype, device=like.device) for side in (height, width))
    row = (index_h[:, None] * angle[None, :]).unsqueeze(1).repeat(1, width, 1)
    column = (index_w[:, None] * angle[None, :]).unsqueeze(0).repeat(height, 1, 1)
    both = torch.cat((row, column), -1).flatten(0, 1)
    return both.sin(), both.cos()


def rotate(x: torch.Tensor, sin: torch.Tensor, cos: torch.Tensor) -> torch.Tensor:
    """Turns neighbouring channels of `(..., N, d)`."""
    return x * cos + torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2) * sin


def rank_augmented(module: Any, x: torch.Tensor) -> torch.Tensor:
    """The output of the linear form of `visionattn.mixers.RankAugmentedLinearAttention`."""
    x = x.permute(0, 3, 1, 2)
    batch, dim, height, width = x.shape
    heads, count = module.num_heads, height * width
    q, k, v, gate = module.qkvo(x).chunk(4, dim=1)
    lepe = module.lepe(v)
    q, k, v = (t.reshape(batch, heads, dim // heads, count).transpose(2, 3) for t in (q, k, v))
    q, k = F.elu(q) + 1, F.elu(k) + 1
    sin, cos = rotation(height, width, dim // heads, q)
    scores = (dim // heads) ** -0.5 * q.mean(dim=2, keepdim=True) @ k.transpose(-1, -2)
    k = k * scores.softmax(-1).transpose(-1, -2) * count
    z = 1 / (q @ k.mean(dim=2, keepdim=True).transpose(-1, -2) + 1e-6)
    q, k = rotate(q, sin, cos), rotate(k, sin, cos)
    kv = (k.transpose(-2, -1) * count**-0.5) @ (v * count**-0.5)
    out = (q @ kv * z).transpose(2, 3).reshape(batch, dim, height, width)
    return module.proj((out + lepe) * gate).permute(0, 2, 3, 1)


def naive_of(module: Any) -> nn.Module:
    """The literal module with the weights of a linear `RankAugmentedLinearAttention`."""
    return Literal(rank_augmented, module)
