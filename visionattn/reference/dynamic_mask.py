"""Dynamic mask attention (arXiv 2508.02124) as the official code takes its steps: all scores, most of them masked."""

from math import ceil
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ._literal import Literal

__all__ = ["dynamic_mask_attention", "naive_of"]


def _mask(module: Any, lift: torch.Tensor) -> torch.Tensor:
    """The biases of the keys kept, `(B, groups, N, N)`, and negative infinity elsewhere."""
    batch, groups, count = lift.shape
    scores = lift.detach().unsqueeze(2).expand(batch, groups, count, count)
    visible = torch.ones(count, count, dtype=torch.bool, device=lift.device)
    if module.causal:
        visible = visible.tril()
    scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
    order = scores.sort(dim=-1, descending=True, stable=True).indices
    if module.selection == "relu":
        chosen = scores > 0
    else:
        number = module.keep if isinstance(module.keep, int) else max(1, ceil(module.keep * count))
        chosen = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, order[..., : min(number, count)], True)
    if module.block_size > 1:
        chosen = chosen.clone()
        for start in range(0, count, module.block_size):
            block = chosen[..., start : start + module.block_size]
            block[:] = (block.float().mean(-1, keepdim=True) > 0.5).expand_as(block)
    chosen = chosen & visible
    best = torch.zeros_like(chosen).scatter(-1, order[..., :1], True)
    chosen = torch.where(chosen.any(-1, keepdim=True), chosen, best)
    return lift.unsqueeze(2).expand_as(chosen).masked_fill(~chosen, float("-inf"))


def _rotate(x: torch.Tensor, height: int, width: int, base: float) -> torch.Tensor:
    """The first half of a head's channels against the second, one angle a pair."""
    half = x.shape[-1] // 2
    angles = x.new_empty(height, width, half)
    for pair in range(half):
        speed = base ** -((pair % (half // 2)) / (half // 2))
        along = torch.arange(height).unsqueeze(1) if pair < half // 2 else torch.arange(width).unsqueeze(0)
        angles[..., pair] = along.to(x) * speed
    turn = torch.polar(torch.ones_like(angles), angles).flatten(0, 1)
    pairs = torch.complex(x[..., :half], x[..., half:]) * turn
    return torch.cat([pairs.real, pairs.imag], -1)


def dynamic_mask_attention(module: Any, x: torch.Tensor) -> torch.Tensor:
    """The output of `visionattn.mixers.DynamicMaskAttention`."""
    _, height, width, _ = x.shape
    tokens, shared = x.flatten(1, 2), module.num_heads // module.num_kv_heads
    values = module.v_proj(tokens)
    q = module.q_norm(module.q_proj(tokens).unflatten(-1, (module.num_heads, -1))).transpose(1, 2)
    k = module.k_norm(module.k_proj(tokens).unflatten(-1, (module.num_kv_heads, -1))).transpose(1, 2)
    if module.rope:
        q, k = (_rotate(part, height, width, module.rope_base) for part in (q, k))
    lift = module.A * F.softplus(module.dt_proj(values))
    mask = _mask(module, lift.transpose(1, 2)).repeat_interleave(shared, 1)
    v = values.unflatten(-1, (module.num_kv_heads, -1)).transpose(1, 2).repeat_interleave(shared, 1)
    scores = q @ k.repeat_interleave(shared, 1).mT * q.shape[-1] ** -0.5 + mask
    return module.o_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2)).view(x.shape)


def naive_of(module: Any) -> nn.Module:
    """The literal module with the weights of a `DynamicMaskAttention`."""
    return Literal(dynamic_mask_attention, module)
