"""Maxima with the gradient of the official codes."""

import torch

from ._modes import transformed

__all__ = ["max_first"]


def max_first(x: torch.Tensor, dim: int) -> torch.Tensor:
    """The maximum over one dimension; where values tie, the gradient goes to the first of them.

    `torch.amax` spreads the gradient over ties, the official codes do not; ties are common after a ReLU and in bf16.
    Without a gradient to take, `amax` gives the same values without finding indices.
    """
    if transformed() or (x.requires_grad and torch.is_grad_enabled()):
        return x.max(dim).values
    return x.amax(dim)
