"""MVPA (arXiv 2506.20354) for maps, in the steps of its formula: each pair reads its rows of the tables."""

from typing import Any

import torch
from torch import nn

from ._literal import Literal

__all__ = ["multi_variate_parallel_attention", "naive_of"]


def multi_variate_parallel_attention(module: Any, x: torch.Tensor) -> torch.Tensor:
    """The output of `visionattn.mixers.MVPAttention`."""
    height, width = x.shape[1:3]
    tokens = x.flatten(1, 2)
    size = x.shape[-1] // module.num_heads
    shared = module.num_heads * size // module.k.out_features

    def by_head(features: torch.Tensor) -> torch.Tensor:
        return features.unflatten(-1, (-1, size)).transpose(-3, -2).repeat_interleave(shared, -3)

    q = module.q(tokens).unflatten(-1, (-1, size)).transpose(1, 2)
    k, v = by_head(module.k(tokens)), by_head(module.v(tokens))
    u, w, z = (by_head(bias[None]) for bias in (module.bias_content, module.bias_row, module.bias_col))
    places = torch.arange(height * width, device=x.device)
    content = (q + u) @ k.mT
    scores, near = torch.zeros_like(content), torch.ones_like(content, dtype=torch.bool)
    for place, table, project, bias in (
        (places // width, module.row_embed, module.row_proj, w),
        (places % width, module.col_embed, module.col_proj, z),
    ):
        offset = place.view(1, -1) - place.view(-1, 1)
        if module.window is not None:
            near = near & (offset.abs() <= module.window)
        reach = len(table) - 1 if module.symmetric else (len(table) - 1) // 2
        index = offset.abs().clamp(max=reach) if module.symmetric else offset.clamp(-reach, reach) + reach
        found = (q + bias) @ by_head(project(table)).mT
        scores = scores + found.gather(-1, index.expand_as(scores))
    rows = ((content * near + scores) / size**0.5).softmax(-1)
    return module.proj((rows @ v).transpose(1, 2).flatten(2)).view(x.shape)


def naive_of(module: Any) -> nn.Module:
    """The literal module with the weights of an `MVPAttention`."""
    return Literal(multi_variate_parallel_attention, module)
