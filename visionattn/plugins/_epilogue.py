"""Residual blocks that hand their addition and ReLU to the plug-in before them.

`relu(plugin(x) + shortcut)` is one pass over the map where the plug-in ends in a gate, and three otherwise.
"""

from typing import Any, ClassVar

import torch
from timm.layers import DropPath
from timm.models.resnet import BasicBlock, Bottleneck
from torch import nn

from ._attached import AttachedModule

__all__ = ["FusedBasicBlock", "FusedBottleneck", "fuse_epilogue"]


class _FusedEpilogue(nn.Module):
    """Calls a plug-in at the branch's end as `plugin(x, residual=shortcut, relu=True)`, if it has `fuses_residual`.

    Outputs and state dict are those of timm's block, which runs where something else stands between plug-in and
    addition, or hooks look at the parts.
    """

    # What the branch consists of up to the plug-in, in order, and the activation after the addition.
    branch: ClassVar[tuple[str, ...]]
    act: ClassVar[str]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        plugin = self._fusing_plugin()
        if plugin is None:
            return super().forward(x)
        block: Any = self
        y = x
        for name in self.branch:
            y = getattr(block, name)(y)
        if block.se is not None and block.se is not plugin:
            y = block.se(y)
        shortcut = x if block.downsample is None else block.downsample(x)
        return plugin(y, residual=shortcut, relu=True)

    def _fusing_plugin(self) -> Any:
        """The last step of the branch if it can do the rest, or None."""
        block: Any = self
        path, plugin = block.drop_path, block.se
        if isinstance(path, AttachedModule) and path.plugin_first and not _is_watched(path):
            path, plugin = path.module, path.plugin
        active = path is not None and type(path) is not nn.Identity
        if type(path) is DropPath and (not self.training or not path.drop_prob):
            active = False
        act = getattr(block, self.act)
        if active or type(act) is not nn.ReLU or not getattr(plugin, "fuses_residual", False):
            return None
        return None if _is_watched(act) or _is_watched(plugin) or _is_watched(path) else plugin


class FusedBasicBlock(_FusedEpilogue, BasicBlock):
    """timm's `BasicBlock` with a fused epilogue."""

    branch = ("conv1", "bn1", "drop_block", "act1", "aa", "conv2", "bn2")
    act = "act2"


class FusedBottleneck(_FusedEpilogue, Bottleneck):
    """timm's `Bottleneck` with a fused epilogue."""

    branch = ("conv1", "bn1", "act1", "conv2", "bn2", "drop_block", "act2", "aa", "conv3", "bn3")
    act = "act3"


_FUSED: dict[Any, type[nn.Module]] = {BasicBlock: FusedBasicBlock, Bottleneck: FusedBottleneck}


def fuse_epilogue(block: nn.Module) -> None:
    """Gives a residual block of timm the fused epilogue; leaves other modules as they are."""
    block.__class__ = _FUSED.get(type(block), type(block))


def _is_watched(module: nn.Module | None) -> bool:
    """Whether hooks would miss that a module is called, or see something else come out of it."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return module is not None and any(getattr(module, name, None) for name in hooks)
