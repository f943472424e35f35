"""Adapters that hold attention in a network built without it."""

from typing import Any

import torch
from torch import nn

from visionattn.utils.transparent import hide_child

__all__ = ["AttachedModule", "ZeroInitGate"]


class ZeroInitGate(nn.Module):
    """`x + gamma * (block(x) - x)` with a learnt number gamma, zero at first. `(B, C, H, W) -> (B, C, H, W)`.

    At gamma 0 the output equals the input exactly, wherever the block's is finite; at 1 it is the block's.

    Args:
        block: Any plug-in.
    """

    def __init__(
        self, block: nn.Module, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        # One number a place: it says how much attention the network came to use there. Not 0-d: FSDP refuses that.
        self.gamma = nn.Parameter(torch.zeros(1, device=device, dtype=dtype))
        self.block = block

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.lerp(x, self.block(x).to(x.dtype), self.gamma.to(x.dtype))


class AttachedModule(nn.Module):
    """A module of the network with attention before or after it, under the module's own state-dict keys.

    Attention stands beside the module, not inside: converting batch normalisation (`SyncBatchNorm`, freezing) keeps it.
    Only `named_parameters` tells that the module moved. The module's data can be read as before: some networks keep the
    wiring of their layers on them. Its methods can't: what folds a block into one layer would lose the attention.

    Args:
        module: What stood in the place; None if nothing did.
        plugin: The attention.
        first: Whether attention comes before the module, on its first argument.
    """

    def __init__(self, module: nn.Module | None, plugin: nn.Module, *, first: bool) -> None:
        super().__init__()
        self.plugin_first = first
        parts = {"plugin": plugin, "module": module} if first else {"module": module, "plugin": plugin}
        for name, part in parts.items():
            self.add_module(name, part)
        hide_child(self, "module")

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not self.plugin_first:
            return self.plugin(self.module(*args, **kwargs))
        x = self.plugin(args[0])
        return x if self.module is None else self.module(x, *args[1:], **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            module = vars(self).get("_modules", {}).get("module")
            if module is None or name.startswith("__"):
                raise
            value = getattr(module, name)
            if callable(value) and not isinstance(value, nn.Module):
                raise
            return value
