"""Steps whose intermediate results are made again in the backward pass instead of kept."""

from collections.abc import Callable

import torch
from torch.utils.checkpoint import checkpoint

from ._modes import needs_formula

__all__ = ["recomputed"]


def recomputed(function: Callable[..., torch.Tensor], *arguments: torch.Tensor) -> torch.Tensor:
    """`function(*arguments)`, of which only the arguments are kept.

    For scans, whose many small steps keep far more than they take time. Compilers decide on their own what to keep.

    Args:
        function: Draws no random numbers.
        arguments: Tensors.
    """
    if needs_formula() or not torch.is_grad_enabled():
        return function(*arguments)
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
