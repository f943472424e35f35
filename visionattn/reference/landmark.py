"""Landmark attention on maps (arXiv 2305.16300), one query at a time."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ._literal import Literal

__all__ = ["landmark_attention", "naive_of"]

LOOPS = True


def landmark_attention(module: Any, x: torch.Tensor) -> torch.Tensor:
    """The output of `visionattn.mixers.LandmarkAttention`."""
    _, height, width, dim = x.shape
    tall, wide = module.window
    windows = [
        [(y, z) for y in range(top, min(top + tall, height)) for z in range(left, min(left + wide, width))]
        for top in range(0, height, tall)
        for left in range(0, width, wide)
    ]
    q, k, v = module.qkv(x).unflatten(-1, (3, module.num_heads, -1)).unbind(3)
    to_key = module.qkv.weight[dim : 2 * dim]
    bias = None if module.qkv.bias is None else module.qkv.bias[dim : 2 * dim]
    landmarks = []
    for places in windows:
        mean = torch.stack([x[:, y, z] for y, z in places]).mean(0) + module.landmark
        landmarks.append(F.linear(mean, to_key, bias).unflatten(-1, (module.num_heads, -1)))
    out = torch.zeros_like(q)
    for number, places in enumerate(windows):
        others = [other for other in range(len(windows)) if other != number]
        for y, z in places:
            query = q[:, y, z] * q.shape[-1] ** -0.5  # (B, heads, d)
            scores = [torch.stack([(query * k[:, a, b]).sum(-1) for a, b in keys], -1) for keys in windows]
            gates = torch.zeros(*query.shape[:2], 0).to(query)
            if others:
                gates = torch.stack([(query * landmarks[other]).sum(-1) for other in others], -1)
            if module.topk is not None and module.topk < len(others):
                least = gates.topk(module.topk, -1).values[..., -1:]
                gates = gates.masked_fill(gates < least, float("-inf"))
            shares = torch.cat([scores[number], gates], -1).softmax(-1)
            parts = [(number, shares[..., : len(places)])]
            for i, other in enumerate(others):
                parts.append((other, shares[..., len(places) + i, None] * scores[other].softmax(-1)))
            for which, weights in parts:
                for j, (a, b) in enumerate(windows[which]):
                    out[:, y, z] += weights[..., j, None] * v[:, a, b]
    return module.proj(out.flatten(3))


def naive_of(module: Any) -> nn.Module:
    """The literal module with the weights of a `LandmarkAttention`."""
    return Literal(landmark_attention, module)
