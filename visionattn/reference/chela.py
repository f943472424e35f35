"""CHELA (arXiv 2406.08128) as the two convolutions and the product of attention that it is made of."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ._literal import Literal
from .mega import gated_layer

__all__ = ["chela", "naive_of"]


def chela(module: Any, x: torch.Tensor) -> torch.Tensor:
    """The output of `visionattn.mixers.CHELA`."""
    normed = module.norm(x)
    kernels = [getattr(module, name, None) for name in ("short", "long", "long_w", "long_h")]
    smooth, channels_first = [], normed.permute(0, 3, 1, 2)
    for kernel in (kernel for kernel in kernels if kernel is not None):
        padding = (kernel.weight.size(2) // 2, kernel.weight.size(3) // 2)
        part = F.conv2d(channels_first, kernel.weight, padding=padding, groups=x.size(-1))
        smooth.append(part.permute(0, 2, 3, 1))

    def read(*maps: torch.Tensor) -> torch.Tensor:
        q, k, v = (part.flatten(1, 2) for part in maps)
        out = q @ (k.mT @ v) / (k.size(1) * k.size(2) ** 0.5)
        out = out * (out.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * module.attn_norm.weight
        return out.view(maps[2].shape)

    return gated_layer(module, x, normed, F.silu(torch.stack(smooth).sum(0) if smooth else normed), read)


def naive_of(module: Any) -> nn.Module:
    """The literal module with the weights of a `CHELA`."""
    return Literal(chela, module)
