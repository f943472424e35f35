"""When to leave PyTorch's own operators for formulations written by hand."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

__all__ = ["differentiable_backward", "traced", "written_by_hand"]


def traced() -> bool:
    """Whether a compiler or exporter reads the code: it gets plain formulas, which it fuses and translates itself."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def written_by_hand(x: torch.Tensor) -> bool:
    """Whether this tensor takes the hand-written CPU formulations, with their own backward passes.

    Half precision does not: PyTorch's own operators accumulate it in float32.
    """
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and not traced()


def differentiable_backward(
    plain: Callable[..., Any], inputs: Sequence[torch.Tensor], grads: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    """The gradients of a plain formula, for a backward pass that shall itself be differentiated.

    Args:
        plain: The formula that the hand-written passes stand for.
        inputs: Its arguments, as saved.
        grads: The gradients of its results, a tuple.
    """
    return torch.func.vjp(plain, *inputs)[1](tuple(grads))
