"""Functions whose intermediate results are recomputed in the backward pass instead of saved."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch.utils.checkpoint import checkpoint

from ._modes import compiling, needs_formula

__all__ = ["recomputed", "with_mask_recomputed"]

Result = TypeVar("Result")


def recomputed(function: Callable[..., Result], *arguments: object, random: bool = False) -> Result:
    """`function(*arguments)`, saving only the arguments.

    For what keeps far more than it takes time: the many small steps of scans, scores and features of all pairs.
    Compilers decide on their own what to keep.

    Args:
        function: What to compute.
        arguments: Tensors and settings.
        random: Whether it draws random numbers, as dropout does.
    """
    if needs_formula() or not torch.is_grad_enabled():
        return function(*arguments)
    result: Result = checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=random)
    return result


def with_mask_recomputed(activation: Callable[..., torch.Tensor], x: torch.Tensor, *others: object) -> torch.Tensor:
    """`activation(x, *others)` that ends in a ReLU or its like, whose gradient needs to know what was positive.

    A compiler would store that as a mask of booleans, and on the CPU this takes its loops several times as long as all
    the rest; so the arguments are kept there.
    """
    if not compiling() or x.device.type != "cpu" or not torch.is_grad_enabled():
        return activation(x, *others)
    result: torch.Tensor = checkpoint(activation, x, *others, use_reentrant=False)
    return result
