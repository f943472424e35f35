"""Cross-shaped window attention as its paper says it: padded maps, stripes cut out, masked keys."""

from typing import Any

import torch
from torch import nn

from ._literal import Literal

__all__ = ["naive_cswin", "naive_of"]


def _stripes(x: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """`(B, C, H, W) -> (B * stripes, C, rows, columns)`."""
    batch, dim, height, width = x.shape
    x = x.reshape(batch, dim, height // rows, rows, width // columns, columns)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(-1, dim, rows, columns)


def _branch(branch: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    batch, dim, height, width = q.shape
    rows, columns = (side or size for side, size in zip(branch.stripe, (height, width), strict=True))
    pad = (0, -width % columns, 0, -height % rows)
    inside = nn.functional.pad(q.new_ones(batch, 1, height, width), pad)
    padded_height, padded_width = inside.shape[2:]
    q, k, v = (_stripes(nn.functional.pad(t, pad), rows, columns) for t in (q, k, v))
    inside = _stripes(inside, rows, columns)
    lepe = nn.functional.conv2d(v, branch.get_v.weight, branch.get_v.bias, padding=1, groups=dim)

    heads = branch.num_heads
    q, k, v = (t.reshape(t.size(0), heads, dim // heads, -1).transpose(-2, -1) for t in (q, k, v))
    scale = (dim // heads) ** -0.5 if branch.qk_scale is None else branch.qk_scale
    logits = (q * scale) @ k.transpose(-2, -1)
    logits = logits.masked_fill(inside.reshape(-1, 1, 1, rows * columns) == 0, float("-inf"))
    out = (logits.softmax(-1) @ v).transpose(-2, -1).reshape(lepe.shape) + lepe
    out = out.reshape(batch, padded_height // rows, padded_width // columns, dim, rows, columns)
    return out.permute(0, 3, 1, 4, 2, 5).reshape(batch, dim, padded_height, padded_width)[:, :, :height, :width]


def naive_cswin(mixer: Any, x: torch.Tensor) -> torch.Tensor:
    """The output of a `CrossShapedWindowAttention` for `(B, H, W, C)`."""
    q, k, v = (t.permute(0, 3, 1, 2) for t in mixer.qkv(x).chunk(3, dim=-1))
    branches = len(mixer.attns)
    parts = zip(mixer.attns, q.chunk(branches, 1), k.chunk(branches, 1), v.chunk(branches, 1), strict=True)
    return mixer.proj(torch.cat([_branch(*part) for part in parts], dim=1).permute(0, 2, 3, 1))


def naive_of(module: Any) -> nn.Module:
    """The literal module with the weights of a `CrossShapedWindowAttention`."""
    return Literal(naive_cswin, module)
