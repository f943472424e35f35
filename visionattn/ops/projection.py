"""Queries, keys and values of one projection."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from ._modes import calls_eager_kernel, use_eager_kernel

__all__ = ["linear_apart", "project_apart", "split_heads"]


def project_apart(qkv: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> list[torch.Tensor]:
    """Queries, keys and values of tokens. `(..., C) -> 3 x (..., C')`.

    On the CPU a plain linear layer gives three tensors of their own: rows of a part of one tensor lie too far apart for
    the cache, and the gradients of the parts would be laid side by side first. Elsewhere one product is quicker.

    Args:
        qkv: The projection, `(..., C) -> (..., 3 * C')`, split [3, C'].
        x: The tokens.
    """
    apart = use_eager_kernel(x) or calls_eager_kernel(x)
    if not apart or type(qkv) is not nn.Linear or qkv._forward_hooks or qkv._forward_pre_hooks:
        return list(qkv(x).chunk(3, -1))
    return linear_apart(x, qkv.weight, qkv.bias, 3)


def linear_apart(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, parts: int) -> list[torch.Tensor]:
    """The parts of a linear layer's result, as products of their own. `(..., C) -> parts x (..., C')`.

    Args:
        x: The tokens.
        weight: Of the whole layer, `(parts * C', C)`.
        bias: Of the whole layer, `(parts * C',)`.
        parts: Number of parts.
    """
    biases = (None,) * parts if bias is None else bias.chunk(parts)
    return [F.linear(x, w, b) for w, b in zip(weight.chunk(parts), biases, strict=True)]


def split_heads(qkv: torch.Tensor, num_heads: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values `(B, num_heads, N, d)` from one projection `(B, N, 3 * num_heads * d)`."""
    q, k, v = qkv.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v
