"""Controls precision where autocast must not choose it."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

__all__ = ["autocast_dtype", "wide", "widened", "without_autocast"]

# Asked once: compilers of PyTorch 2.11 cannot ask, and other devices, such as meta, do not even say that it is off.
_DEVICES = frozenset(filter(torch.amp.is_autocast_available, ("cpu", "cuda", "hpu", "mps", "mtia", "xla", "xpu")))


def autocast_dtype(x: torch.Tensor) -> torch.dtype | None:
    """The dtype in which autocast computes products on a tensor's device; None if it is off."""
    device = x.device.type
    enabled = device in _DEVICES and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if enabled else None


def without_autocast(x: torch.Tensor) -> AbstractContextManager[Any]:
    """A context in which operators on a tensor's device compute in the dtype of their inputs."""
    return nullcontext() if autocast_dtype(x) is None else torch.autocast(x.device.type, enabled=False)


def wide(x: torch.Tensor) -> torch.dtype:
    """The accumulation dtype: float32, or float64 for a float64 tensor."""
    return torch.promote_types(x.dtype, torch.float32)


def widened(x: torch.Tensor) -> torch.Tensor:
    """The tensor in float32, or unchanged in float64."""
    return x if x.dtype in (torch.float32, torch.float64) else x.to(wide(x))
