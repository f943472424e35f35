"""Sparsifiner (arXiv 2303.13755) step by step: prediction, mask, softmax over what it leaves; maps of the nominal grid
or of another one, without extra tokens."""

from math import ceil
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ._literal import Literal

__all__ = ["naive_of", "sparsifiner"]


def sparsifiner(module: Any, x: torch.Tensor) -> torch.Tensor:
    """The output of `visionattn.mixers.SparsifinerAttention` by default."""
    heads, predictor = module.num_heads, module.mask_predictor
    q, k, v = (p.unflatten(-1, (heads, -1)).transpose(1, 2) for p in module.qkv(x.flatten(1, 2)).chunk(3, dim=-1))
    q, k = module.q_norm(q), module.k_norm(k)
    with torch.no_grad():
        tables = (predictor.proj_n, predictor.proj_back_n)
        down, back = (_resized(table[predictor.prefix_tokens :], predictor.grid, x) for table in tables)
        keys = torch.einsum("bhnc,nk->bhck", predictor.proj_c_k(k), down)
        coefficients = (predictor.proj_c_q(q) @ keys * heads**-0.5).softmax(-1)
        least = coefficients.sort(-1, descending=True).values[..., : module.coef_topk][..., -1:]
        coefficients = coefficients * (coefficients >= least)
        predicted = coefficients @ F.threshold(back.abs(), module.basis_threshold, 0.0).mT
        rank = predicted.argsort(-1, descending=True).argsort(-1)
        mask = rank < ceil(module.keep_rate * predicted.size(-1))
    scores = torch.einsum("bhnd,bhmd->bhnm", q, k) * q.size(-1) ** -0.5
    weights = scores.masked_fill(~mask, float("-inf")).softmax(-1).nan_to_num(0)
    return module.proj(torch.einsum("bhnm,bhmd->bnhd", weights, v).flatten(2)).view(x.shape)


def _resized(table: torch.Tensor, grid: tuple[int, int], x: torch.Tensor) -> torch.Tensor:
    """The rows of a table for the grid of a map."""
    maps = table.view(1, *grid, -1).permute(0, 3, 1, 2)
    size = (x.size(1), x.size(2))
    if size != grid:
        maps = F.interpolate(maps, size, mode="bicubic", align_corners=False)
    return maps[0].flatten(1).mT


def naive_of(module: Any) -> nn.Module:
    """The literal module with the weights of a `SparsifinerAttention`."""
    return Literal(sparsifiner, module)
