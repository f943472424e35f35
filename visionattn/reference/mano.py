"""Multipole attention (arXiv 2507.02748) level by level: each map is cut into windows and attended to by itself."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ._literal import Literal

__all__ = ["multipole_attention", "naive_of"]


def multipole_attention(module: Any, x: torch.Tensor) -> torch.Tensor:
    """The output of `visionattn.mixers.MultipoleAttention` without dropout, for sides that all steps divide."""
    rate, maps = module.rate, [x.permute(0, 3, 1, 2)]
    for _ in range(module.count_levels(x.size(1), x.size(2)) - 1):
        maps.append(F.avg_pool2d(maps[-1], rate) if module.down is None else module.down(maps[-1]))
    results = [_windows(module, level) for level in maps]
    out = results[-1]
    for step, finer in enumerate(reversed(results[:-1]), 1):
        coarse = F.interpolate(out, scale_factor=rate, mode="nearest") if module.up is None else module.up(out)
        out = finer + coarse / step
    return out.permute(0, 2, 3, 1)


def _windows(module: Any, x: torch.Tensor) -> torch.Tensor:
    """Attention in the windows of one level. `(B, C, H, W) -> (B, C, H, W)`."""
    side, stride, batch, size = module.window_size, module.window_stride, x.size(0), x.shape[2:]
    tokens = F.unfold(x, side, stride=stride).unflatten(1, (x.size(1), -1))  # (B, C, n, windows)
    tokens = tokens.permute(0, 3, 2, 1).flatten(0, 1)
    tokens = module.attn_norm(module.norm(tokens))
    q, k, v = (
        part.unflatten(2, (module.num_heads, -1)).transpose(1, 2) for part in module.qkv(tokens).chunk(3, dim=-1)
    )
    weights = (q @ k.mT * q.size(-1) ** -0.5).softmax(-1)
    out = module.proj((weights @ v).transpose(1, 2).flatten(2))
    out = out.unflatten(0, (batch, -1)).permute(0, 3, 2, 1).flatten(1, 2)
    count = F.fold(F.unfold(torch.ones_like(x), side, stride=stride), tuple(size), side, stride=stride)
    return F.fold(out, tuple(size), side, stride=stride) / count


def naive_of(module: Any) -> nn.Module:
    """The literal module with the weights of a `MultipoleAttention`."""
    return Literal(multipole_attention, module)
