"""Queries, keys and values of one projection."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from ._modes import use_eager_kernel

__all__ = ["project_apart"]


def project_apart(qkv: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> list[torch.Tensor]:
    """Queries, keys and values of tokens. `(..., C) -> 3 x (..., C')`.

    On the CPU a plain linear layer gives three tensors of their own: rows of a part of one tensor lie too far apart for
    the cache, and the gradients of the parts would be laid side by side first. Elsewhere one product is quicker.

    Args:
        qkv: The projection, `(..., C) -> (..., 3 * C')`, split [3, C'].
        x: The tokens.
    """
    if type(qkv) is not nn.Linear or qkv._forward_hooks or qkv._forward_pre_hooks or not use_eager_kernel(x):
        return list(qkv(x).chunk(3, -1))
    biases = (None,) * 3 if qkv.bias is None else qkv.bias.chunk(3)
    return [F.linear(x, weight, bias) for weight, bias in zip(qkv.weight.chunk(3), biases, strict=True)]
