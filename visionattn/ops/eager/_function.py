"""Autograd functions with low call overhead, and autograd functions for a formula."""

import inspect
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any, ClassVar

import torch

from visionattn.ops._modes import needs_formula

__all__ = ["EagerFunction", "Function", "formula_gradients"]

Tensors = tuple[torch.Tensor | None, ...]


class Function(torch.autograd.Function):
    """An autograd function with `setup_context` whose `forward` keeps its signature.

    PyTorch asks for that at each call to fill in defaults; finding it anew takes as long as a small operator.
    """

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        forward: Any = getattr(cls.forward, "__func__", cls.forward)
        forward.__signature__ = inspect.signature(forward)


class EagerFunction(Function):
    """A formula with passes of its own: `apply(formula, *tensors, *settings)`.

    A subclass gives `compute(*tensors, *settings)`, the formula's results followed by what else is to be saved, and
    `gradients(ctx, *grads)`, those of the tensors; it finds the tensors, then the rest, in `ctx.saved_tensors`, and the
    settings in `ctx.settings`. Where the gradients are themselves differentiated or mapped over, the formula's are
    taken, so derivatives of any order and kind are right.
    """

    # How many results the formula has.
    results: ClassVar[int] = 1

    compute: Callable[..., Any]
    gradients: Callable[..., Tensors]

    @classmethod
    def forward(cls, formula: Callable[..., Any], *inputs: Any) -> Any:
        return cls.compute(*inputs)

    @classmethod
    def setup_context(cls, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.formula, *rest = inputs
        tensors = list(takewhile(lambda part: part is None or isinstance(part, torch.Tensor), rest))
        extra = output[cls.results :] if isinstance(output, tuple) else ()
        ctx.mark_non_differentiable(*extra)
        # The single result of a function has a gradient, and the rest needs none made of zeros.
        ctx.set_materialize_grads(cls.results > 1)
        ctx.save_for_backward(*tensors, *extra)
        ctx.settings = tuple(rest[len(tensors) :])
        ctx.tensors = len(tensors)

    @classmethod
    def backward(cls, ctx: Any, *grads: Any) -> Any:
        grads = grads[: cls.results]
        if grads[0] is None and cls.results == 1:  # what comes after has no gradient
            return (None,) * (1 + ctx.tensors + len(ctx.settings))
        if torch.is_grad_enabled() or needs_formula():
            tensors = ctx.saved_tensors[: ctx.tensors]
            found = formula_gradients(lambda *x: ctx.formula(*x, *ctx.settings), tensors, grads)
        else:
            found = cls.gradients(ctx, *grads)
        return None, *found, *(None for _ in ctx.settings)


def formula_gradients(
    formula: Callable[..., Any], inputs: Sequence[torch.Tensor | None], grads: Sequence[torch.Tensor]
) -> Tensors:
    """The gradients of a plain formula, which can be differentiated once more.

    Args:
        formula: Gives a tensor or several.
        inputs: Its arguments; None stays None.
        grads: The gradients of its results.
    """
    given = [part for part in inputs if part is not None]

    def of_given(*parts: torch.Tensor) -> tuple[torch.Tensor, ...]:
        at = iter(parts)
        out = formula(*(None if part is None else next(at) for part in inputs))
        return out if isinstance(out, tuple) else (out,)

    found = iter(torch.func.vjp(of_given, *given)[1](tuple(grads)))
    return tuple(None if part is None else next(found) for part in inputs)
