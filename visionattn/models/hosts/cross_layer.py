"""A ResNet whose attention also sees earlier layers: descriptors are passed from block to block explicitly.

The history of a block holds the stem's descriptor, those of the blocks of each earlier stage, and those of the blocks
before it in its own stage, a tuple each. Nothing of it is kept in attributes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.models.resnet import BasicBlock, Bottleneck
from torch import nn

from visionattn.utils.factory import FactoryKwargs

from ..builder import chosen_maps
from .backbone import checkpoint_block
from .resnet import ResNet

__all__ = ["CrossLayerBasicBlock", "CrossLayerBottleneck", "CrossLayerResNet"]

Descriptors = tuple[torch.Tensor, ...]
History = tuple[Descriptors, ...]


class _CrossLayerBlock:
    """The base of the residual blocks: `(B, C, H, W), history -> (B, C', H', W'), own descriptor`."""

    aa: Any
    se: nn.Module
    drop_path: nn.Module | None
    downsample: nn.Module | None

    def attend(self, x: torch.Tensor, residual: torch.Tensor, history: History) -> tuple[torch.Tensor, torch.Tensor]:
        """The attended residual plus the shortcut, and the residual's descriptor."""
        residual, descriptor = self.se(residual, history)
        if self.drop_path is not None:
            residual = self.drop_path(residual)
        residual += x if self.downsample is None else self.downsample(x)
        return residual, descriptor


class CrossLayerBasicBlock(_CrossLayerBlock, BasicBlock):
    """timm's block of two 3x3 convolutions with the attention as `se`."""

    def forward(  # type: ignore[override]
        self, x: torch.Tensor, history: History
    ) -> tuple[torch.Tensor, torch.Tensor]:
        residual = self.act1(self.drop_block(self.bn1(self.conv1(x))))
        residual = self.bn2(self.conv2(self.aa(residual)))
        out, descriptor = self.attend(x, residual, history)
        return self.act2(out), descriptor


class CrossLayerBottleneck(_CrossLayerBlock, Bottleneck):
    """timm's bottleneck with the attention as `se`."""

    def forward(  # type: ignore[override]
        self, x: torch.Tensor, history: History
    ) -> tuple[torch.Tensor, torch.Tensor]:
        residual = self.act1(self.bn1(self.conv1(x)))
        residual = self.act2(self.drop_block(self.bn2(self.conv2(residual))))
        residual = self.bn3(self.conv3(self.aa(residual)))
        out, descriptor = self.attend(x, residual, history)
        return self.act3(out), descriptor


_BLOCKS = {BasicBlock: CrossLayerBasicBlock, Bottleneck: CrossLayerBottleneck}


class _Stage(nn.ModuleList):
    """A sequence of blocks."""

    def forward(
        self, x: torch.Tensor, earlier: History, checkpointing: bool = False
    ) -> tuple[torch.Tensor, Descriptors]:
        own: Descriptors = ()
        for block in self:
            history = (*earlier, own)
            x, descriptor = checkpoint_block(block, x, history) if checkpointing else block(x, history)
            own = (*own, descriptor)
        return x, own


class CrossLayerResNet(ResNet):
    """A ResNet with cross-layer attention in every residual block, before the addition.

    `(B, in_chans, H, W) -> (B, num_classes)`.

    Args:
        block: timm's `BasicBlock` or `Bottleneck`.
        layers: Number of blocks of each stage.
        attention: Builds the attention of a block: called with its width, the widths of its history (as the history,
            numbers in the place of descriptors), `device` and `dtype`. Takes a map and the history, gives the map and
            its own descriptor `(B, width)`.
        device: Where the parameters live.
        dtype: Their dtype.
        **kwargs: As `ResNet`: `stem_stride` and timm's.
    """

    def __init__(
        self,
        block: type[nn.Module],
        layers: Sequence[int],
        *,
        attention: Callable[..., nn.Module],
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        super().__init__(_BLOCKS[block], layers, **dd, **kwargs)
        widths: tuple[tuple[int, ...], ...] = ((self.feature_info[0]["num_chs"],),)
        for info in self.feature_info[1:]:
            width: int = info["num_chs"]
            blocks: Any = self.get_submodule(info["module"])
            for index, attended in enumerate(blocks):
                attended.se = attention(width, (*widths, (width,) * index), **dd)
            setattr(self, info["module"], _Stage(blocks))
            widths = (*widths, (width,) * len(blocks))

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """The maps after the stem's activation (0) and after each stage (1 to 4).

        Args:
            x: Images.
            indices: Which maps to return: the last n, these (negative ones count from the end), or all.
            norm: Without effect, as in timm's ResNet.
            stop_early: Leave out the stages behind the last map that is returned.
            output_fmt: NCHW.
            intermediates_only: Return the list of maps alone.

        Returns:
            The last map and the list of maps, or the list alone.

        Raises:
            ValueError: If `output_fmt` is another, or an index is out of range.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be NCHW, got {output_fmt!r}")
        count = len(self.feature_info)
        wanted = chosen_maps(indices, count)
        x, maps = self._run(x, wanted, max(wanted) if stop_early else count - 1)
        return maps if intermediates_only else (x, maps)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """The map before pooling and classifier."""
        return self._run(x)[0]

    def _run(
        self, x: torch.Tensor, wanted: Sequence[int] = (), last: int = 4
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        x = self.act1(self.bn1(self.conv1(x)))
        maps = [x] if 0 in wanted else []
        x = self.maxpool(x)
        history: History = ((x.mean((2, 3)),),)
        for index, stage in enumerate((self.layer1, self.layer2, self.layer3, self.layer4)[:last], 1):
            if len(stage):  # timm empties the stages that feature extraction does not need.
                x, descriptors = stage(x, history, self.grad_checkpointing)
                history = (*history, descriptors)
            if index in wanted:
                maps.append(x)
        return x, maps
