"""The most memory that a computation holds at once, counted tensor by tensor: the same on every machine and device."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .operator_counter import FusedAttention

__all__ = ["peak_bytes"]


def peak_bytes(run: Callable[[], Any]) -> int:
    """Runs something and gives the most bytes of tensors that it makes and holds at one moment.

    Inputs and parameters were there before and do not count; what comes out of `run` does. What an operator holds while
    it computes one result, such as tiles of a fused attention, is not seen. On the meta device attention counts as
    fused, as it is on accelerators.
    """
    with _Peak() as peak, FusedAttention():
        run()
    return peak.most


class _Peak(TorchDispatchMode):
    """Adds the memory of new tensors when an operator gives them, and subtracts it when nothing holds them any more."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.alive: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        before = {_key(t) for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        out = func(*args, **kwargs)
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and _key(tensor) not in before | self.alive.keys():
                self.add(tensor.untyped_storage())
        self.most = max(self.most, self.now)
        return out

    def add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()

        def gone(_: Any) -> None:
            self.now -= size
            del self.alive[key]

        self.alive[key] = weakref.ref(storage, gone)
        self.now += size


def _key(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata
