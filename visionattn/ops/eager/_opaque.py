"""Passes by hand as operators that `torch.compile` calls as they are, where its own loops are slower."""

from collections.abc import Callable
from inspect import signature
from typing import Any, get_args

import torch

__all__ = ["opaque"]


def opaque(
    name: str, compute: Callable[..., Any], fake: Callable[..., Any], gradients: Callable[..., tuple[torch.Tensor, ...]]
) -> Any:
    """Makes the operator `visionattn::<name>_by_hand`, and another of its gradients, each opaque to compilers.

    Args:
        name: Of the operation.
        compute: Gives a tensor, its own memory, of tensors, or a tuple of it and what its gradients need; its
            annotations are the operator's schema.
        fake: With the same arguments, gives empty tensors of the results' shapes, strides and dtypes.
        gradients: Called with the gradient of the first result, the arguments and the other results, gives tensors that
            lie as the first arguments do, as many as it is annotated to give; the other arguments get none.
    """
    forward: Any = torch.library.custom_op(f"visionattn::{name}_by_hand", compute, mutates_args=())
    forward.register_fake(fake)
    backward: Any = torch.library.custom_op(f"visionattn::{name}_by_hand_backward", gradients, mutates_args=())
    arguments, found = len(signature(compute).parameters), len(get_args(signature(gradients).return_annotation))
    backward.register_fake(lambda grad, *parts: tuple(torch.empty_like(part) for part in parts[:found]))

    def save(ctx: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs, *(output[1:] if isinstance(output, tuple) else ()))

    def backpropagate(ctx: Any, grad: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        return *backward(grad, *ctx.saved_tensors), *[None] * (arguments - found)

    forward.register_autograd(backpropagate, setup_context=save)
    return forward
