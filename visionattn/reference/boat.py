"""BOAT's feature-space local attention as the paper's code goes about it, step by step and all of it recorded for
gradients: tokens lie along the last axis while they are sorted, keys and values are copied for each cluster that sees
them, results and values are both brought back to the image. For N = cluster_size * 2**k; a single cluster has the one
of the next image for its sibling."""

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["NaiveFeatureSpaceLocalAttention", "naive_of", "naive_order"]


def naive_order(q: torch.Tensor, cluster_size: int, iterations: int = 2, temperature: float = 100.0) -> torch.Tensor:
    """`(B, heads, N, d) -> (B, heads, N)`, cluster after cluster."""
    batch, heads, tokens, dim = q.shape
    order = torch.arange(tokens, device=q.device).expand(batch * heads, tokens)
    x = q.reshape(batch * heads, tokens, dim).mT
    for _ in range(int(math.log2(tokens // cluster_size))):
        runs, _, length = x.shape
        centroids = F.normalize(x.reshape(runs, dim, 2, length // 2).mean(-1), dim=1)
        for _ in range(iterations):
            cosines = F.normalize(x.mT, dim=-1) @ centroids
            centroids = F.normalize(x @ (temperature * cosines).softmax(-1).detach(), dim=1)
        cosines = F.normalize(x.mT, dim=-1) @ centroids
        score = (cosines[..., 0] + 1) / (cosines[..., 1] + 1)
        rank = score.sort(dim=-1, stable=True).indices
        order = order.gather(1, rank).reshape(2 * runs, length // 2)
        x = x.gather(2, rank.unsqueeze(1).expand(x.shape))
        x = x.reshape(runs, dim, 2, length // 2).transpose(1, 2).reshape(2 * runs, dim, length // 2)
    return order.reshape(batch, heads, tokens)


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
        qkv = self.qkv(x.flatten(1, 2)).reshape(batch, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)
        order = naive_order(qkv[0], size)
        back = order.sort(dim=-1).indices
        qkv = qkv.gather(3, order.unsqueeze(0).unsqueeze(-1).expand(qkv.shape))
        # Clusters of an image stand one after the other, those of the next image behind them.
        qkv = qkv.unflatten(3, (-1, size)).transpose(2, 3).flatten(1, 2)
        q, k, v = qkv.unbind(0)
        keys, values = (self._seen(part, extra) for part in (k, v))
        attention = (q @ keys.transpose(-1, -2) * self.scale).softmax(-1)
        out, local = (self._in_image(part, back) for part in (attention @ values, values[:, :, :size]))
        local = self.get_v(local.reshape(batch, channels, height, width)).flatten(2)
        return self.proj(out.mT + local.mT).view(x.shape)

    def _seen(self, x: torch.Tensor, extra: int) -> torch.Tensor:
        """The rows of each cluster and after them those of its sibling. `(B * clusters, heads, size, d)`."""
        pairs = x.unflatten(0, (-1, 2))
        others = torch.stack((pairs[:, 1, :, :extra], pairs[:, 0, :, x.size(2) - extra :]), dim=1)
        return torch.cat((pairs, others), dim=3).flatten(0, 1)

    def _in_image(self, x: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
        """Rows of clusters as they stand in the image. `(B * clusters, heads, size, d) -> (B, C, N)`."""
        x = x.unflatten(0, (len(back), -1)).permute(0, 2, 4, 1, 3).flatten(3)
        return x.gather(3, back.unsqueeze(2).expand(x.shape)).flatten(1, 2)


def naive_of(module: Any) -> nn.Module:
    """The literal module with the weights of a `FeatureSpaceLocalAttention`."""
    naive = NaiveFeatureSpaceLocalAttention(
        module.qkv.in_features, module.num_heads, module.cluster_size, module.overlap, module.scale
    )
    naive.load_state_dict(module.state_dict())
    return naive
