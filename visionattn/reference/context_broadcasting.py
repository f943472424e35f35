"""Context broadcasting (arXiv 2210.08457) as a product with the matrix of uniform attention."""

from typing import Any

import torch
from torch import nn

from ._literal import Literal

__all__ = ["context_broadcast", "naive_of"]


def context_broadcast(module: Any, x: torch.Tensor) -> torch.Tensor:
    """The output of `visionattn.mixers.ContextBroadcast`, of maps."""
    tokens = x.flatten(1, 2)
    count = tokens.shape[1]
    uniform = torch.full((count, count), 1 / count, dtype=x.dtype, device=x.device) @ tokens
    out = (tokens + uniform) / 2 if module.scale is None else tokens + module.scale * uniform
    return out.view(x.shape)


def naive_of(module: Any) -> nn.Module:
    """The literal module with the weights of a `ContextBroadcast`."""
    return Literal(context_broadcast, module)
