"""Chooses the form of an operation: its plain formula, or a hand-written pass for eager PyTorch."""

import torch
from torch.autograd import forward_ad

__all__ = [
    "calls_eager_kernel",
    "compiling",
    "is_exporting",
    "needs_formula",
    "traced",
    "transformed",
    "use_eager_kernel",
]

_EXACT = (torch.float32, torch.float64)
# PyTorch 2.6 can only say that an exporter or a compiler reads the code.
is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)


def traced() -> bool:
    """Whether a compiler or exporter traces the code: these fuse and translate plain formulas themselves."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


# Compilers ask while they trace, with the same transforms under way.
@torch.compiler.assume_constant_result
def transformed() -> bool:
    """Whether `torch.func` transforms the code (vmap, grad, jvp, ...) or forward-mode differentiation is under way.

    Such tensors cannot be written into, and a pass by hand has no rule for them.
    """
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def compiling() -> bool:
    """Whether `torch.compile` traces the code: the one reader that makes few loops of a formula and its gradient."""
    return torch.compiler.is_compiling() and not is_exporting() and not transformed()


def needs_formula() -> bool:
    """Whether the plain formula must run, as for compilers, exporters and transforms."""
    return traced() or transformed()


def use_eager_kernel(x: torch.Tensor) -> bool:
    """Whether this tensor uses the hand-written CPU passes.

    Half precision does not: PyTorch's own operators accumulate it in float32.
    """
    return x.is_cpu and x.dtype in _EXACT and not needs_formula()


def calls_eager_kernel(x: torch.Tensor) -> bool:
    """Whether a compiled graph may call the hand-written CPU passes for this tensor, as one operator each."""
    return compiling() and x.device.type == "cpu" and x.dtype in _EXACT
