"""Passes by hand as operators that `torch.compile` calls as they are, where its own loops are slower."""

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["opaque"]


def opaque(
    name: str, compute: Callable[..., Any], fake: Callable[..., Any], gradients: Callable[..., tuple[torch.Tensor, ...]]
) -> Any:
    """Makes the operator `visionattn::<name>_by_hand`, and another of its gradients, each opaque to compilers.

    Args:
        name: Of the operation.
        compute: Gives a tensor, its own memory, of tensors; its annotations are the operator's schema.
        fake: With the same arguments, gives an empty tensor of the result's shape, strides and dtype.
        gradients: Called with the result's gradient and the arguments, gives tensors that lie as the arguments do.
    """
    forward: Any = torch.library.custom_op(f"visionattn::{name}_by_hand", compute, mutates_args=())
    forward.register_fake(fake)
    backward: Any = torch.library.custom_op(f"visionattn::{name}_by_hand_backward", gradients, mutates_args=())
    backward.register_fake(lambda grad, *inputs: tuple(torch.empty_like(part) for part in inputs))

    def save(ctx: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        ctx.save_for_backward(*inputs)

    def backpropagate(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found: tuple[torch.Tensor, ...] = backward(grad, *ctx.saved_tensors)
        return found

    forward.register_autograd(backpropagate, setup_context=save)
    return forward
