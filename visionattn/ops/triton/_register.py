"""Registering kernels with PyTorch, so that autograd, compilers and mixed precision see one operator each."""

import os
from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any

import torch

from visionattn.ops.eager._function import formula_gradients

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


def _as_it_is(kernel: Any) -> Any:
    return kernel


# How a kernel is launched: `wrap_triton(kernel)[grid](...)`. Compilers look into operators for launches of this name.
wrap_triton = _as_it_is if INTERPRETED else torch.library.wrap_triton

_remembered: list[Any] = []


def by_sizes(function: Callable[..., Any]) -> Any:
    """Remembers what a function of sizes gives: tiles and grids cost more Python than their kernels' launch."""
    known = lru_cache(maxsize=4096)(function)
    _remembered.append(known)

    @wraps(function)
    def call(*args: Any) -> Any:
        try:
            return known(*args)
        except TypeError:  # a size that a compiler does not know cannot be looked up
            return function(*args)

    call.cache_info = known.cache_info  # type: ignore[attr-defined]
    return call


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
    interpreter needs the data.

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
