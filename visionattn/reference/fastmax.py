"""Fastmax (arXiv 2402.07901): all products of two numbers of a key meet the values, then those of the queries."""

from typing import Any

import torch
from torch import nn

from ._literal import Literal

__all__ = ["fastmax", "naive_of"]


def fastmax(module: Any, x: torch.Tensor) -> torch.Tensor:
    """The output of `visionattn.mixers.FastmaxAttention` without `causal` and dropout."""
    heads = module.num_heads
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in module.qkv(x.flatten(1, 2)).chunk(3, dim=-1))
    if module.normalize:
        q, k = (module.lim * t / t.norm(dim=-1).amax(-1)[..., None, None] for t in (q, k))
    a = module.coefficients
    above = a[0] * v.sum(2, keepdim=True) + a[1] * torch.einsum("bhnd,bhde->bhne", q, k.mT @ v)
    below = a[0] * v.shape[2] + a[1] * torch.einsum("bhnd,bhd->bhn", q, k.sum(2))
    if module.order == 2:
        q, k = (torch.einsum("bhni,bhnj->bhnij", t, t) for t in (q, k))
        above = above + a[2] * torch.einsum("bhnij,bhije->bhne", q, torch.einsum("bhnij,bhne->bhije", k, v))
        below = below + a[2] * torch.einsum("bhnij,bhij->bhn", q, k.sum(2))
    return module.proj((above / below.unsqueeze(-1)).transpose(1, 2).flatten(2)).view(x.shape)


def naive_of(module: Any) -> nn.Module:
    """The literal module with the weights of a `FastmaxAttention`."""
    return Literal(fastmax, module)
