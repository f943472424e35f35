"""Focused linear attention as its authors write it down: tokens in rows, one step after the other."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["NaiveFocusedLinearAttention", "naive_of"]


class NaiveFocusedLinearAttention(nn.Module):
    """`(B, H, W, C) -> (B, H, W, C)` for H x W equal to `grid_size`; takes the state dict of the mixer.

    Args:
        dim: Width.
        num_heads: Heads, a divisor of `dim`.
        grid_size: Rows and columns of the map.
        focusing_factor: The power.
        kernel_size: Side of the convolution of the values.
    """

    def __init__(
        self, dim: int, *, num_heads: int, grid_size: tuple[int, int], focusing_factor: int = 3, kernel_size: int = 5
    ) -> None:
        super().__init__()
        head_dim = dim // num_heads
        self.num_heads = num_heads
        self.focusing_factor = focusing_factor
        self.qkv = nn.Linear(dim, 3 * dim)
        self.scale = nn.Parameter(torch.zeros(1, 1, dim))
        self.positional_encoding = nn.Parameter(torch.zeros(1, grid_size[0] * grid_size[1], dim))
        self.dwc = nn.Conv2d(head_dim, head_dim, kernel_size, padding=kernel_size // 2, groups=head_dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, height, width, dim = x.shape
        tokens, heads = height * width, self.num_heads
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, dim).permute(2, 0, 1, 3)
        k = k + self.positional_encoding
        scale = F.softplus(self.scale)
        q, k = ((F.relu(part) + 1e-6) / scale for part in (q, k))
        q, k = (self.focus(part) for part in (q, k))
        q, k, v = (part.reshape(batch, tokens, heads, -1).permute(0, 2, 1, 3).flatten(0, 1) for part in (q, k, v))
        z = 1 / (q @ k.mean(1, keepdim=True).transpose(1, 2) + 1e-6)
        kv = (k.transpose(1, 2) * tokens**-0.5) @ (v * tokens**-0.5)
        out = q @ kv * z
        out = out.transpose(1, 2).reshape(batch, dim, tokens).permute(0, 2, 1)
        values = v.reshape(batch * heads, height, width, -1).permute(0, 3, 1, 2)
        out = out + self.dwc(values).reshape(batch, dim, tokens).permute(0, 2, 1)
        return self.proj(out).reshape(x.shape)

    def focus(self, t: torch.Tensor) -> torch.Tensor:
        """Towards the nearest axis, at equal length."""
        length = t.norm(dim=-1, keepdim=True)
        t = t**self.focusing_factor
        return t / t.norm(dim=-1, keepdim=True) * length


def naive_of(module: Any) -> nn.Module:
    """The literal module with the weights of a `FocusedLinearAttention` on its nominal grid."""
    naive = NaiveFocusedLinearAttention(
        module.qkv.in_features,
        num_heads=module.num_heads,
        grid_size=module.grid_size,
        focusing_factor=module.focusing_factor,
        kernel_size=module.dwc.kernel_size[0],
    )
    naive.load_state_dict(module.state_dict())
    return naive
