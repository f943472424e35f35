"""FEAT's WKV (arXiv 2506.04956) as the sums of its formula over all pairs, channel by channel."""

from typing import Any

import torch
from torch import nn

from ._literal import Literal

__all__ = ["naive_of", "wkv", "wkv_spatial"]

LOOPS = True


def wkv(k: torch.Tensor, v: torch.Tensor, decay: torch.Tensor, first: torch.Tensor, offset: int = 1) -> torch.Tensor:
    """Every token over every other one, `(B, N, C)`."""
    place = torch.arange(k.shape[1], device=k.device)
    steps = (place - place[:, None]).abs().unsqueeze(-1)  # (N, N, 1)
    far = torch.where(steps == 0, first, -decay * (steps - offset).to(k.dtype))
    weights = (far + k.unsqueeze(1)).exp()  # (B, N, N, C)
    return (weights * v.unsqueeze(1)).sum(2) / weights.sum(2)


def wkv_spatial(module: Any, x: torch.Tensor, first: torch.Tensor | None = None) -> torch.Tensor:
    """The output of `visionattn.mixers.WKVSpatialMixer`."""
    _, height, width, _ = x.shape
    x = x + module.dwconv2d(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    k, v, gate = module.key(x), module.value(x), module.receptance(x).sigmoid()
    added = None
    if first is not None:
        v, added = v + module.alpha[0] * first, module.alpha[1] * (first - v)
    decays, firsts = module.spatial_decay / (height * width), module.spatial_first / (height * width)
    rows = wkv(k.flatten(1, 2), v.flatten(1, 2), decays[0], firsts[0], module.decay_offset).view(v.shape)
    k, v = (part.transpose(1, 2).flatten(1, 2) for part in (k, rows))
    out = wkv(k, v, decays[1], firsts[1], module.decay_offset).unflatten(1, (width, height)).transpose(1, 2)
    out = out if added is None else out + added
    out = out if module.key_norm is None else module.key_norm(out)
    return module.output(out * gate)


def naive_of(module: Any) -> nn.Module:
    """The literal module with the weights of a `WKVSpatialMixer`."""
    return Literal(wkv_spatial, module)
