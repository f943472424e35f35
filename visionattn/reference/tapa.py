"""TAPA (arXiv 2509.12635) as equation 12 says it, with phases of two axes, pair by pair."""

from math import pi
from typing import Any

import torch
from torch import nn

from ._literal import Literal

__all__ = ["naive_of", "token_aware_phase_attention"]


def token_aware_phase_attention(module: Any, x: torch.Tensor) -> torch.Tensor:
    """The output of `visionattn.mixers.TokenAwarePhaseAttention`."""
    height, width = x.shape[1:3]
    tokens = x.flatten(1, 2)
    q, k, v = (part.unflatten(-1, (module.num_heads, -1)).transpose(1, 2) for part in module.qkv(tokens).chunk(3, -1))
    each = (q.shape[-1] - module.amplitude) // 2
    q, k = (part.split((module.amplitude, each, each), -1) for part in (q, k))
    places = torch.arange(height * width, device=x.device)
    phase = torch.zeros((), dtype=x.dtype, device=x.device)
    for axis, place in enumerate((places // width, places % width), 1):
        distance = (place.view(-1, 1) - place.view(1, -1)).abs().to(x.dtype)
        power = torch.where(distance == 0, torch.zeros_like(distance), distance**module.alpha)
        if module.phase == "quadratic":
            speed = q[axis] @ k[axis].mT
        else:
            speed = q[axis].sum(-1).unsqueeze(-1) + k[axis].sum(-1).unsqueeze(-2)
        phase = phase + power * speed / each**0.5
    scores = q[0] @ k[0].mT / module.amplitude**0.5 * torch.cos(2 * pi * phase)
    return module.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2)).view(x.shape)


def naive_of(module: Any) -> nn.Module:
    """The literal module with the weights of a `TokenAwarePhaseAttention`."""
    return Literal(token_aware_phase_attention, module)
