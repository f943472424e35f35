"""What holds attention in a network that was built without it."""

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


class AttachedModule(nn.Sequential):
    """A module of the network with attention before or behind it, under the module's own state-dict keys.

    Attention stands beside the module, not inside: converting batch normalisation (`SyncBatchNorm`, freezing) keeps it.
    Only `named_parameters` tells that the module moved.

    Args:
        module: What stood in the place; None if nothing did.
        plugin: The attention.
        first: Whether attention comes before the module.
    """

    def __init__(self, module: nn.Module | None, plugin: nn.Module, *, first: bool) -> None:
        super().__init__()
        parts = {"plugin": plugin, "module": module} if first else {"module": module, "plugin": plugin}
        for name, part in parts.items():
            if part is not None:
                self.add_module(name, part)
        if module is not None:
            hide_child(self, "module")
