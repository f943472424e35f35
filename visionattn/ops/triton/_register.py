"""Registering kernels with PyTorch, so that autograd, compilers and mixed precision see one operator each."""

import os
from collections.abc import Callable, Sequence
from functools import lru_cache, wraps
from typing import Any

import torch

from visionattn.ops.eager._function import Function, formula_gradients

__all__ = [
    "INTERPRETED",
    "by_sizes",
    "forget_sizes",
    "formula_gradients",
    "power_of_2",
    "register",
    "unit_of",
    "wrap_triton",
]

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def _is_watched() -> bool:
    """Whether a compiler, a mode or a tracer must see operators and launches."""
    return torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0


def wrap_triton(kernel: Any) -> Any:
    """How a kernel is launched: `wrap_triton(kernel)[grid](...)`.

    Compilers look into operators for launches of this name.
    """
    return torch.library.wrap_triton(kernel) if not INTERPRETED and _is_watched() else kernel


_remembered: list[Any] = []


def by_sizes(function: Callable[..., Any]) -> Any:
    """Remembers what a function of sizes gives: tiles and grids cost more Python than their kernels' launch.

    Where a compiler does not know the sizes it is computed each time.
    """
    known = lru_cache(maxsize=4096)(function)
    _remembered.append(known)

    @wraps(function)
    def call(*args: Any) -> Any:
        if torch.compiler.is_compiling():
            return function(*args)
        try:
            return known(*args)
        except TypeError:  # a size without a number cannot be looked up
            return function(*args)

    remembering: Any = call
    remembering.known = known
    return remembering


def forget_sizes() -> None:
    """Forgets all that `by_sizes` remembers, for tests that change what tiles are made of."""
    for known in _remembered:
        known.cache_clear()


def register(
    fake: Callable[..., Any],
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> Callable[[Callable[..., Any]], Any]:
    """Makes `visionattn::<name>` of a function that launches kernels; its annotations are the operator's schema.

    On a GPU compilers look inside, so that a launch costs no Python; interpreted, the operator is opaque, for the
    interpreter needs the data. Eager code that nobody watches runs the function itself: PyTorch's way to an operator
    written in Python takes longer than all else in a call.

    Args:
        fake: With the same arguments, gives empty tensors of the results' shapes, strides and dtypes.
        setup_context: As in `torch.library.register_autograd`.
        backward: As there; it may call registered operators only, or a formula where gradients are enabled, for then
            it is differentiated once more.
    """

    def decorate(run: Callable[..., Any]) -> Any:
        define = torch.library.custom_op if INTERPRETED else torch.library.triton_op
        op: Any = define(f"visionattn::{run.__name__}", run, mutates_args=())
        op.register_fake(fake)
        op.run = run  # The launches alone, for tests that compile them without a GPU.
        if backward is not None:
            op.register_autograd(backward, setup_context=setup_context)
        differentiable = None if backward is None else _differentiable(run, setup_context, backward)
        op.__class__ = _short_cut(type(op), run, differentiable)
        return op

    return decorate


def power_of_2(size: int, most: int) -> int:
    """The smallest power of 2 that is not below a size, or `most`, itself such a power, if that is smaller.

    In comparisons alone, so that compilers that know no size get a few guards.
    """
    power = 1
    while power < most and power < size:
        power *= 2
    return power


def unit_of(size: int) -> int:
    """The largest power of 2 up to 16 that divides a size: what kernels are compiled for in its place."""
    unit = 16
    while size % unit:
        unit //= 2
    return unit


def _short_cut(kind: type, run: Callable[..., Any], differentiable: Any) -> type:
    """A class of operators that run a function at once where no compiler, mode or kind of tensor must see them."""

    class Operator(kind):
        def __call__(self, *args: Any) -> Any:
            if _is_watched():
                return super().__call__(*args)
            wanted = False
            for part in _flat(args):
                if isinstance(part, torch.Tensor):
                    if type(part) not in _PLAIN or part.is_meta:
                        return super().__call__(*args)
                    wanted = wanted or part.requires_grad
            if not wanted or not torch.is_grad_enabled():
                return run(*args)
            return super().__call__(*args) if differentiable is None else differentiable(*args)

    return Operator


_PLAIN = (torch.Tensor, torch.nn.Parameter)


def _differentiable(run: Callable[..., Any], setup: Any, backward: Callable[..., Any]) -> Callable[..., Any]:
    """A function with its gradients for autograd, as `register_autograd` would make it."""

    class Direct(Function):
        @staticmethod
        def forward(*parts: Any) -> Any:
            return run(*_nested(parts[-1], parts))

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            setup(ctx, _nested(inputs[-1], inputs), output)

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return *_flat(backward(ctx, *grads)), None

    def call(*args: Any) -> Any:
        lengths = tuple(len(part) if _is_list(part) else -1 for part in args)
        return Direct.apply(*_flat(args), lengths)

    return call


def _is_list(part: Any) -> bool:
    """Whether this is a list of tensors, which autograd does not look into."""
    return isinstance(part, list) and bool(part) and not isinstance(part[0], int)


def _flat(args: Sequence[Any]) -> list[Any]:
    """Arguments with those in lists of tensors one by one."""
    flat: list[Any] = []
    for part in args:
        if _is_list(part):
            flat += part
        else:
            flat.append(part)
    return flat


def _nested(lengths: Sequence[int], parts: Sequence[Any]) -> tuple[Any, ...]:
    """What `_flat` flattened."""
    at = iter(parts)
    return tuple(next(at) if length < 0 else [next(at) for _ in range(length)] for length in lengths)
