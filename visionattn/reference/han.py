"""HAN's two attention modules (arXiv 2008.08767) as the official code takes their steps."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ._literal import Literal

__all__ = ["channel_spatial_attention", "layer_attention", "naive_of"]


def layer_attention(module: Any, x: torch.Tensor) -> torch.Tensor:
    """The output of `visionattn.plugins.LayerAttention` of a stack, or of a map of HAN's defaults."""
    layers = module.layers or (x.shape[1] if x.ndim == 5 else max(n for n in range(1, 12) if x.shape[1] % n == 0))
    stack = x.reshape(x.shape[0], layers, -1)
    alike = F.cosine_similarity(stack[:, :, None], stack[:, None], dim=3) if module.energy == "cosine" else None
    energy = torch.bmm(stack, stack.permute(0, 2, 1)) if alike is None else alike
    if module.energy == "mean":
        energy = energy / stack.shape[2]
    if module.favour == "unlike":
        energy = energy.max(-1, keepdim=True)[0].expand_as(energy) - energy
    out = torch.bmm(energy.softmax(-1), stack)
    return (module.gamma * out + stack).reshape(x.shape[0], -1, *x.shape[-2:])


def channel_spatial_attention(module: Any, x: torch.Tensor) -> torch.Tensor:
    """The output of `visionattn.plugins.ChannelSpatialAttention`."""
    gate = torch.sigmoid(F.conv3d(x.unsqueeze(1), module.conv.weight.unsqueeze(0), module.conv.bias, padding=1))
    return x * (module.gamma * gate).view(x.shape) + x


def naive_of(module: Any) -> nn.Module:
    """The literal module with the weights of a `LayerAttention` or a `ChannelSpatialAttention`."""
    return Literal(layer_attention if hasattr(module, "layers") else channel_spatial_attention, module)
