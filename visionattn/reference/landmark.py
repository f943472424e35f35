"""Landmark attention on maps (arXiv 2305.16300) by the official grouped softmax over tokens and landmarks."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ._literal import Literal

__all__ = ["grouped_softmax", "landmark_attention", "naive_of"]


def grouped_softmax(scores: torch.Tensor, group: torch.Tensor, count: int) -> torch.Tensor:
    """The softmax of each row inside each group of its columns, `(B, heads, N, M)`; `group` `(N, M)` numbers them."""
    place = group.expand(scores.shape)
    shape = (*scores.shape[:-1], count)
    highest = scores.new_full(shape, float("-inf")).scatter_reduce(-1, place, scores.detach(), "amax")
    raised = (scores - highest.gather(-1, place)).exp()
    return raised / raised.new_zeros(shape).scatter_add(-1, place, raised).gather(-1, place)


def landmark_attention(module: Any, x: torch.Tensor) -> torch.Tensor:
    """The output of `visionattn.mixers.LandmarkAttention`."""
    _, height, width, dim = x.shape
    (tall, wide), heads = module.window, module.num_heads
    rows, columns = (torch.arange(side, device=x.device) // by for side, by in ((height, tall), (width, wide)))
    across = -(-width // wide)
    section = (rows.unsqueeze(1) * across + columns).flatten()  # the window of each token
    count = -(-height // tall) * across
    members = F.one_hot(section, count).to(x).T
    tokens = x.flatten(1, 2)
    landmarks = members / members.sum(1, keepdim=True) @ tokens + module.landmark
    q, k, v = module.qkv(tokens).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    bias = None if module.qkv.bias is None else module.qkv.bias[dim : 2 * dim]
    routes = F.linear(landmarks, module.qkv.weight[dim : 2 * dim], bias).unflatten(-1, (heads, -1)).transpose(1, 2)
    scores = q @ torch.cat([k, routes], 2).mT * q.shape[-1] ** -0.5
    own = section.unsqueeze(1) == torch.cat([section, torch.arange(count, device=x.device)])  # (N, N + U)
    is_own, is_own_landmark = own[:, : len(section)], own[:, len(section) :]
    gates = scores[..., len(section) :].masked_fill(is_own_landmark, float("-inf"))
    if module.topk is not None and module.topk < count - 1:
        least = gates.topk(module.topk, -1).values[..., -1:]
        gates = gates.masked_fill(gates < least, float("-inf"))
    # Group `count`: a query's own window with all landmarks; the others: the tokens of the other windows.
    group = torch.where(is_own, count, section).long()
    group = torch.cat([group, group.new_full((len(section), count), count)], 1)
    shares = grouped_softmax(torch.cat([scores[..., : len(section)], gates], -1), group, count + 1)
    shares, gates = shares.split([len(section), count], -1)
    weights = torch.where(is_own, shares, shares * gates[..., section])
    return module.proj((weights @ v).transpose(1, 2).flatten(2)).view(x.shape)


def naive_of(module: Any) -> nn.Module:
    """The literal module with the weights of a `LandmarkAttention`."""
    return Literal(landmark_attention, module)
