"""When to leave PyTorch's own operators for formulations written by hand."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as _modules

__all__ = ["HandWritten", "differentiable_backward", "is_unmodified", "traced", "transformed", "use_eager_kernel"]


def traced() -> bool:
    """Whether a compiler or exporter reads the code: it gets plain formulas, which it fuses and translates itself."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def use_eager_kernel(x: torch.Tensor) -> bool:
    """Whether this tensor takes the hand-written CPU formulations, with their own backward passes.

    Half precision does not: PyTorch's own operators accumulate it in float32.
    """
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and not traced()


def transformed(*tensors: torch.Tensor | None) -> bool:
    """Whether `torch.func` maps over one of these tensors or differentiates it: it cannot write into buffers."""
    return any(t is not None and torch.func.debug_unwrap(t, recurse=False) is not t for t in tensors)


def is_unmodified(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether this is such a module as it was made, so that reading its weights does all that calling it would.

    Not so with hooks, adapters, parametrised weights or another `forward`. Compilers and exporters get the calls.
    """
    if traced():
        return False
    hooks = module._forward_pre_hooks or module._forward_hooks or module._backward_pre_hooks or module._backward_hooks
    return type(module) is kind and not hooks and "forward" not in vars(module) and not _modules._has_any_global_hook()


class HandWritten(torch.autograd.Function):
    """An autograd function with `setup_context` whose `forward` keeps its signature.

    PyTorch asks for that at each call to fill in defaults; finding it anew takes as long as a small operator.
    """

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        cls.forward.__signature__ = inspect.signature(cls.forward)


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
