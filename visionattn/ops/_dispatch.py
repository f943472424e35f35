"""Dispatch of operations to PyTorch code or Triton kernels.

The torch code of an operation defines what it means and runs everywhere; its kernels take over on GPUs where they can.
Nothing imports Triton before a kernel is wanted.
"""

import functools
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from ._modes import is_exporting, transformed

__all__ = ["Choice", "explain", "has_kernel", "use_backend", "wants_kernels", "wants_torch"]

BACKENDS = ("auto", "torch", "triton")
# Under this many bytes a map stays in the GPU's cache, and what counts is the number of launches.
WORTHWHILE = 4 * 2**20
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_VARIABLE = "VISIONATTN_KERNELS"


def _checked(backend: str, name: str) -> str:
    if backend not in BACKENDS:
        raise ValueError(f"{name} must be one of {', '.join(BACKENDS)}, got {backend!r}")
    return backend


_default = _checked(os.environ.get(_VARIABLE, "auto"), f"the environment variable {_VARIABLE}")


class Choice(NamedTuple):
    """The backend of an operation, `torch` or `triton`, and a short reason."""

    backend: str
    reason: str


_ON_CPU = Choice("torch", "kernels run on CUDA devices only")


@contextmanager
def use_backend(backend: str) -> Iterator[None]:
    """Sets the backend of all operations called without `backend`, for the whole process.

    Args:
        backend: `auto`: kernels where they can run and pay; `torch`: none; `triton`: kernels, or an error that says why
            there is none. The environment variable `VISIONATTN_KERNELS` sets what holds outside, `auto` without it.

    Raises:
        ValueError: If the name is unknown.
    """
    global _default
    before, _default = _default, _checked(backend, "backend")
    try:
        yield
    finally:
        _default = before


def wants_torch() -> bool:
    """Whether `use_backend("torch")` holds: only PyTorch's own operations are wanted, as where they are looked at."""
    return _default == "torch"


def wants_kernels() -> bool:
    """Whether `use_backend("triton")` holds: kernels are wanted wherever there are some."""
    return _default == "triton"


def explain(op: Callable[..., Any], *args: Any, backend: str | None = None, **kwargs: Any) -> Choice:
    """Returns which backend `op(*args, backend=backend, **kwargs)` would take, and why; computes nothing.

    Args:
        op: An operation of `visionattn.ops`.
        *args: Its arguments.
        backend: As for the operation.
        **kwargs: Its keyword arguments.

    Raises:
        ValueError: If `backend` is unknown.
    """
    if not hasattr(op, "refuses"):
        return Choice("torch", "there are no kernels of it")
    choice, refused = _choose(op.refuses, backend, *_positional(op, args, kwargs))
    return Choice("torch", f"asked for triton, but {choice.reason}") if refused else choice


def has_kernel(module: str, refuses: Callable[..., str]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Dispatches a torch function to the function of its name in `visionattn.ops.triton.<module>`.

    The function gets a keyword `backend`, as in `use_backend`, None for what holds there. Kernels run on CUDA devices
    of compute capability 8.0 and up, in half precision and float32; never for exporters and the transforms of
    `torch.func`, which get the torch code, as does forward-mode differentiation.

    Args:
        module: Name of the module of the kernels; its function has the same arguments.
        refuses: Called with the arguments, it says in a few words why the kernels cannot take them, or "". It looks at
            nothing but shapes, strides, dtypes and devices, so that compilers can guard on what it finds.
    """

    def decorate(reference: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(reference)
        def op(*args: Any, backend: str | None = None, **kwargs: Any) -> Any:
            args, kwargs = _positional(op, args, kwargs)
            choice, refused = _choose(refuses, backend, args, kwargs)
            if refused:
                raise ValueError(f"{reference.__name__} has no kernel for this: {choice.reason}")
            if choice.backend == "triton":
                return _launch(_kernel(module, reference.__name__), args, kwargs)
            return reference(*args, **kwargs)

        dispatched: Any = op
        dispatched.refuses, dispatched.first = refuses, next(iter(inspect.signature(reference).parameters))
        signature = inspect.signature(reference)
        parameters = list(signature.parameters.values())
        own = inspect.Parameter("backend", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=str | None)
        dispatched.__signature__ = signature.replace(parameters=[*parameters, own])
        return dispatched

    return decorate


def _positional(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional arguments with the map first, also if it was given by keyword."""
    if args or op.first not in kwargs:
        return args, kwargs
    return (kwargs[op.first],), {name: value for name, value in kwargs.items() if name != op.first}


def _choose(
    refuses: Callable[..., str], backend: str | None, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Choice, bool]:
    """The choice, and whether it contradicts an explicit request for kernels."""
    wish = _default if backend is None else _checked(backend, "backend")
    if wish == "torch" or not args:  # without a map the torch code says what is missing
        return Choice("torch", "asked for"), False
    x = args[0]
    if wish == "auto" and x.is_cpu:  # first, as the calls of small maps pay for every question
        return _ON_CPU, False
    if torch.jit.is_tracing() or is_exporting():
        return Choice("torch", "exporters get the torch code"), False
    if transformed():
        return Choice("torch", "torch.func and forward-mode differentiation get the torch code"), False
    reason = _cannot_run(x, forced=wish == "triton") or refuses(*args, **kwargs)
    if not reason and wish == "auto" and x.numel() * x.element_size() < WORTHWHILE:
        reason = "the map is smaller than 4 MB, where launches count more than bytes"
    if reason:
        return Choice("torch", reason), wish == "triton"
    return Choice("triton", "asked for" if wish == "triton" else "a GPU, and a map that the kernels take"), False


def _cannot_run(x: torch.Tensor, forced: bool) -> str:
    if x.device.type == "cuda":
        reason = _without_gpu(x.device.index or 0)
    elif x.device.type == "cpu" and forced and _interpreting():
        reason = ""
    else:
        reason = _ON_CPU.reason
    if not reason and x.dtype not in DTYPES:
        reason = "kernels take float16, bfloat16 and float32 only"
    return reason


# A device stays what it is: asking the driver and looking for a package take longer than a call's other Python.
@torch.compiler.assume_constant_result
@functools.cache
def _without_gpu(index: int) -> str:
    """Why this CUDA device cannot run kernels, or ""."""
    if not torch.cuda.is_available() or torch.version.hip:
        return "there is no CUDA device"
    if torch.cuda.get_device_capability(index) < (8, 0):
        return "kernels need compute capability 8.0"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    return ""


@torch.compiler.assume_constant_result
def _interpreting() -> bool:
    """Whether kernels are interpreted on the CPU, for tests; Triton reads the same variable at import."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _launch(kernel: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Runs kernels on the GPU of the first argument, whichever is current; in backward passes PyTorch does so."""
    if torch.compiler.is_compiling() or not args[0].is_cuda:
        return kernel(*args, **kwargs)
    with torch.cuda.device_of(args[0]):
        return kernel(*args, **kwargs)


def _kernel(module: str, name: str) -> Callable[..., Any]:
    path = f"{__package__}.triton.{module}"
    if path not in sys.modules:
        _import(path)
    return getattr(sys.modules[path], name)


@torch.compiler.assume_constant_result
def _import(path: str) -> None:
    importlib.import_module(path)
