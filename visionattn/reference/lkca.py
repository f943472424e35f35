"""LKCA as the paper describes it: a window slides over the kernel, and what it shows becomes the attention map."""

from typing import Any

import torch
from torch import nn

__all__ = ["NaiveLKCA", "attention_map", "naive_of"]

LOOPS = True


def attention_map(kernel: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """`(2H - 1, 2W - 1) -> (N, N)`: the window starts at the bottom right and ends at the top left."""
    windows = [
        kernel[top : top + height, left : left + width].flatten()
        for top in range(height - 1, -1, -1)
        for left in range(width - 1, -1, -1)
    ]
    return torch.stack(windows)


class NaiveLKCA(nn.Module):
    """`(B, H, W, C) -> (B, H, W, C)` on the grid of the kernel `(G, 1, 2H - 1, 2W - 1)`, one channel at a time.

    Takes the state dict of a `LargeKernelConvAttention` with a kernel of full size.
    """

    def __init__(self, dim: int, height: int, width: int, groups: int, *, value_proj: bool, bias: bool) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.empty(groups, 1, 2 * height - 1, 2 * width - 1))
        self.bias = nn.Parameter(torch.empty(dim)) if bias else None
        self.v = nn.Linear(dim, dim, bias=False) if value_proj else nn.Identity()
        self.proj = nn.Linear(dim, dim) if value_proj else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, height, width, dim = x.shape
        values = self.v(x.reshape(batch, height * width, dim))
        maps = [attention_map(kernel[0], height, width) for kernel in self.kernel]
        channels_each = dim // len(maps)
        mixed = [torch.einsum("qk,bk->bq", maps[c // channels_each], values[:, :, c]) for c in range(dim)]
        out = torch.stack(mixed, dim=2)
        if self.bias is not None:
            out = out + self.bias
        return self.proj(out).reshape(x.shape)


def naive_of(module: Any) -> nn.Module:
    """The literal module with the weights of a `LargeKernelConvAttention`, for maps of its grid."""
    height, width = ((taps + 1) // 2 for taps in module.kernel.shape[2:])
    projected = isinstance(module.v, nn.Linear)
    dim = module.v.in_features
    naive = NaiveLKCA(dim, height, width, len(module.kernel), value_proj=projected, bias=module.bias is not None)
    naive.load_state_dict(module.state_dict())
    return naive
