"""Where autocast may not choose the precision, and which one is wide enough."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

__all__ = ["autocast_dtype", "wide", "widened", "without_autocast"]

# Asked once: compilers of PyTorch 2.11 cannot ask, and other devices, such as meta, do not even say that it is off.
_DEVICES = frozenset(filter(torch.amp.is_autocast_available, ("cpu", "cuda", "hpu", "mps", "mtia", "xla", "xpu")))


def autocast_dtype(x: torch.Tensor) -> torch.dtype | None:
    """The dtype that autocast computes products in on the device of a tensor; None where it is off."""
    device = x.device.type
    enabled = device in _DEVICES and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if enabled else None


def without_autocast(x: torch.Tensor) -> AbstractContextManager[Any]:
    """A context in which operators on the device of a tensor compute in the dtype of what they are given."""
    return nullcontext() if autocast_dtype(x) is None else torch.autocast(x.device.type, enabled=False)


def wide(x: torch.Tensor) -> torch.dtype:
    """Float32, or float64 for such a tensor: what sums are added up in."""
    return torch.promote_types(x.dtype, torch.float32)


def widened(x: torch.Tensor) -> torch.Tensor:
    """The tensor in float32, or as it is in float64."""
    return x.to(wide(x))
