"""BOAT's feature-space local attention as the paper's code goes about it: one thing at a time, all of it recorded for
gradients. For N = cluster_size * 2**k; a single cluster has the one of the next image for its sibling."""

import math

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["NaiveFeatureSpaceLocalAttention", "naive_of", "naive_order"]


def naive_order(q: torch.Tensor, cluster_size: int, iterations: int = 2, temperature: float = 100.0) -> torch.Tensor:
    """`(B, heads, N, d) -> (B, heads, N)`, cluster after cluster."""
    batch, heads, tokens, dim = q.shape
    order = torch.arange(tokens, device=q.device).expand(batch, heads, tokens)
    for level in range(int(math.log2(tokens // cluster_size))):
        half = tokens // 2 ** (level + 1)
        x = q.gather(2, order.unsqueeze(-1).expand(q.shape)).view(batch, heads, 2**level, 2 * half, dim)
        centroids = torch.stack((x[..., :half, :].mean(-2), x[..., half:, :].mean(-2)), dim=-2)
        centroids = F.normalize(centroids, dim=-1)
        for _ in range(iterations):
            cosines = F.normalize(x, dim=-1) @ centroids.transpose(-1, -2)
            weights = (temperature * cosines).softmax(-1).detach()
            centroids = (weights.unsqueeze(-1) * x.unsqueeze(-2)).sum(-3)
            centroids = F.normalize(centroids, dim=-1)
        cosines = F.normalize(x, dim=-1) @ centroids.transpose(-1, -2)
        score = (cosines[..., 0] + 1) / (cosines[..., 1] + 1)
        rank = score.sort(dim=-1, stable=True).indices
        order = order.reshape(rank.shape).gather(-1, rank).view(batch, heads, tokens)
    return order


class NaiveFeatureSpaceLocalAttention(nn.Module):
    """`(B, H, W, C) -> (B, H, W, C)`; takes the state dict of `visionattn.mixers.FeatureSpaceLocalAttention`."""

    def __init__(self, dim: int, num_heads: int, cluster_size: int = 49, overlap: int = 20, scale: float | None = None):
        super().__init__()
        self.num_heads, self.cluster_size, self.overlap = num_heads, cluster_size, overlap
        self.scale = scale or (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.get_v = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, height, width, channels = x.shape
        tokens, heads, size, extra = height * width, self.num_heads, self.cluster_size, self.overlap
        qkv = self.qkv(x.flatten(1, 2)).view(batch, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)
        v_image = qkv[2]
        order = naive_order(qkv[0], size)
        table = order.unsqueeze(-1).expand(qkv.shape[1:])
        qkv = qkv.gather(3, table.unsqueeze(0).expand(qkv.shape))
        # Clusters of a head stand one after the other, those of the next image behind them.
        qkv = qkv.view(3, batch, heads, -1, size, channels // heads).transpose(2, 3).flatten(1, 2)
        q, (k, v) = qkv[0] * self.scale, qkv[1:]
        keys, values = (
            torch.stack(
                (
                    torch.cat((part[0::2], part[1::2, :, :extra]), dim=2),
                    torch.cat((part[1::2], part[0::2, :, size - extra :]), dim=2),
                ),
                dim=1,
            ).flatten(0, 1)
            for part in (k, v)
        )
        out = (q @ keys.transpose(-1, -2)).softmax(-1) @ values
        out = out.view(batch, -1, heads, size, channels // heads).transpose(1, 2).reshape(table.shape)
        out = torch.zeros_like(out).scatter(2, table, out)
        out = out.transpose(1, 2).reshape(batch, tokens, channels)
        v_image = v_image.transpose(2, 3).reshape(batch, channels, height, width)
        local = self.get_v(v_image).flatten(2).transpose(1, 2)
        return self.proj(out + local).view(x.shape)


def naive_of(module: nn.Module) -> nn.Module:
    """The literal module with the weights of a `FeatureSpaceLocalAttention`."""
    naive = NaiveFeatureSpaceLocalAttention(
        module.qkv.in_features, module.num_heads, module.cluster_size, module.overlap, module.scale
    )
    naive.load_state_dict(module.state_dict())
    return naive
