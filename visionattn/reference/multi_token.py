"""Multi-Token Attention (arXiv 2504.00927) step by step: convolutions over the matrices of scores and weights."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ._literal import Literal

__all__ = ["multi_token_attention", "naive_of"]


def _convolve_map(scores: torch.Tensor, kernel: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """For each row of a head's matrix, the map of its entries convolved with the head's kernel."""
    batch, heads, rows, _ = scores.shape
    maps = scores.reshape(batch, heads, rows, *grid).transpose(1, 2).reshape(batch * rows, heads, *grid)
    maps = F.conv2d(maps, kernel, padding=kernel.shape[-1] // 2, groups=heads)
    return maps.reshape(batch, rows, heads, -1).transpose(1, 2)


def _convolve(
    module: Any, scores: torch.Tensor, grid: tuple[int, int], hidden: torch.Tensor, after: bool
) -> torch.Tensor:
    if module.layout == "grid":
        keys, queries = (module.kernel_k_after, module.kernel_q_after) if after else (module.kernel_k, module.kernel_q)
        if keys is None:
            return scores
        return _convolve_map(_convolve_map(scores, keys, grid).mT, queries, grid).mT
    kernel = module.mta_kernel_after_sm if after else module.mta_kernel
    if kernel is None:
        return scores
    width = kernel.shape[3]
    left = {"both": width // 2, "left": width - 1, "right": 0}[module.pad_key]
    scores = F.pad(scores.masked_fill(hidden, 0), (left, width - 1 - left, kernel.shape[2] - 1, 0))
    return F.conv2d(scores, kernel, groups=module.num_heads)


def multi_token_attention(module: Any, x: torch.Tensor) -> torch.Tensor:
    """The output of `visionattn.mixers.MultiTokenAttention`."""
    batch, height, width, dim = x.shape
    count, heads = height * width, module.num_heads
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in module.qkv(x.flatten(1, 2)).chunk(3, -1))
    hidden = torch.ones(count, count, dtype=torch.bool, device=x.device).triu(1)
    if not module.causal:
        hidden = torch.zeros_like(hidden)
    scores = _convolve(module, q @ k.mT / (dim // heads) ** 0.5, (height, width), hidden, False)
    if module.wpsm is not None:
        scores = module.wpsm(scores.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    weights = _convolve(module, weights, (height, width), hidden, True).masked_fill(hidden, 0)
    if module.wposm is not None:
        weights = module.wposm(weights.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    if module.head_kernel is not None:
        size = module.head_kernel.shape[1]
        mixed = []
        for number in range(heads):
            group, place = divmod(number, size)
            sources = range(group * size, (group + 1) * size)
            parts = [weights[:, e] * module.head_kernel[group, e % size, place] for e in sources]
            mixed.append(torch.stack(parts).sum(0))
        weights = torch.stack(mixed, 1)
    out = weights @ v
    if module.subln is not None:
        out = module.subln(out) * module.rescale
    if module.gate is not None:
        out = out * torch.sigmoid(module.gate(out))
    return module.proj(out.transpose(1, 2).reshape(batch, height, width, dim))


def naive_of(module: Any) -> nn.Module:
    """The literal module with the weights of a `MultiTokenAttention`."""
    return Literal(multi_token_attention, module)
