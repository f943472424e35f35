"""The layers of networks of token mixers, all on channels-last maps `(B, H, W, C)`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from timm.layers import DropPath
from torch import nn
from torch.nn import functional as F

from visionattn.catalog import BlockContext
from visionattn.mixers._position import PositionConv, PositionEmbedding
from visionattn.ops.losses import Losses, call_with_losses
from visionattn.utils.factory import FactoryKwargs

__all__ = [
    "BatchNorm",
    "Block",
    "Mlp",
    "PatchConv",
    "PatchMerging",
    "PositionConv",
    "PositionEmbedding",
    "ResidualBranch",
    "branch_builder",
]

Norm = Callable[..., nn.Module]


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation of a channels-last map. `(B, H, W, C) -> (B, H, W, C)`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class ResidualBranch(nn.Module):
    """A residual branch: `x + drop_path(gamma * fn(norm(x)))`. `(B, H, W, C) -> (B, H, W, C)`.

    Args:
        dim: Width of the map.
        fn: The mixer or MLP.
        norm: Builds the norm before it.
        layer_scale: Start of the learnable scale of each channel; none leaves it out.
        drop_path: Share of the samples of a training batch that skip the branch.
    """

    has_losses = True

    def __init__(
        self,
        dim: int,
        fn: nn.Module,
        *,
        norm: Norm = nn.LayerNorm,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        self.norm = norm(dim, **dd)
        self.fn = fn
        self.gamma = None if layer_scale is None else nn.Parameter(torch.full((dim,), layer_scale, **dd))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: torch.Tensor, losses: Losses | None = None) -> torch.Tensor:
        """Runs the branch; a mixer's losses go into `losses`, or else to the open collector."""
        return self.add(x, call_with_losses(self.fn, self.norm(x), losses=losses))

    def add(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Adds the scaled output of the mixer to its input."""
        return x + self.drop_path(y if self.gamma is None else y * self.gamma)


def branch_builder(context: BlockContext, **kwargs: Any) -> Callable[[nn.Module], ResidualBranch]:
    """The builder of a block's residual branches from its mixers and its MLP.

    Args:
        context: Of the block.
        **kwargs: As `ResidualBranch`: norm, layer_scale, device, dtype.
    """
    return partial(ResidualBranch, context.dim, drop_path=context.drop_path, **kwargs)


class Block(nn.Sequential):
    """A sequence of named parts, such as `attn` and `mlp`. `(B, H, W, C) -> (B, H, W, C)`.

    Args:
        *args: As `nn.Sequential`.
        **parts: Residual branches and position encodings.
    """

    has_losses = True

    def __init__(self, *args: Any, **parts: nn.Module) -> None:
        super().__init__(*args)
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: torch.Tensor, losses: Losses | None = None) -> torch.Tensor:
        for part in self:
            x = call_with_losses(part, x, losses=losses)
        return x


class Mlp(nn.Module):
    """Two linear layers with GELU between, on each position. `(B, H, W, C) -> (B, H, W, C)`.

    Args:
        dim: Width of the map.
        ratio: Hidden width over `dim`.
        conv: A 3x3 depthwise convolution of the hidden map before the activation (PVTv2) or none.
        drop: Dropout after the activation and at the end.
    """

    def __init__(
        self,
        dim: int,
        *,
        ratio: float = 4.0,
        conv: bool = False,
        drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        hidden = int(dim * ratio)
        self.fc1 = nn.Linear(dim, hidden, **dd)
        self.conv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, **dd) if conv else None
        self.fc2 = nn.Linear(hidden, dim, **dd)
        self.drop = nn.Dropout(drop)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.fc1(x)
        if self.conv is not None:
            x = self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.drop(self.fc2(self.drop(F.gelu(x))))


class PatchConv(nn.Module):
    """A strided convolution with norms around it: stems and downsampling. `(B, H, W, C) -> (B, H', W', out_dim)`.

    A map that is smaller than the kernel is filled up with zeros, at the right and the bottom: any H, W >= 1.

    Args:
        dim: Width of the input.
        out_dim: Width of the output.
        kernel_size: Side of the kernel.
        stride: Step of the kernel.
        padding: Zeros on each side; none keeps the size but for the stride.
        bias: Whether the convolution has one.
        norm: Builds the norm after the convolution.
        norm_first: Builds the norm before it.
        pad_to_stride: Fill the map up with zeros, at the right and the bottom, to a multiple of the stride, so that no
            pixel is lost.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        *,
        kernel_size: int,
        stride: int,
        padding: int = 0,
        bias: bool = True,
        norm: Norm | None = None,
        norm_first: Norm | None = None,
        pad_to_stride: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        self.stride = stride
        self.pad_to_stride = pad_to_stride
        self.smallest = kernel_size - 2 * padding
        self.norm_first = norm_first(dim, **dd) if norm_first else nn.Identity()
        self.conv = nn.Conv2d(dim, out_dim, kernel_size, stride, padding, bias=bias, **dd)
        self.norm = norm(out_dim, **dd) if norm else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm_first(x).permute(0, 3, 1, 2)
        if self.pad_to_stride:
            x = F.pad(x, (0, -x.shape[3] % self.stride, 0, -x.shape[2] % self.stride))
        if self.smallest > 1 and min(x.shape[2:]) < self.smallest:
            x = F.pad(x, [side for size in (x.shape[3], x.shape[2]) for side in (0, max(self.smallest - size, 0))])
        return self.norm(self.conv(x).permute(0, 2, 3, 1))


class PatchMerging(nn.Module):
    """Swin's downsampling: 2x2 positions as one, a norm, a linear layer. `(B, H, W, C) -> (B, H/2, W/2, out_dim)`.

    Odd sides are filled up with zeros. Channels come in the order top left, bottom left, top right, bottom right.
    """

    stride = 2

    def __init__(
        self,
        dim: int,
        out_dim: int,
        *,
        norm: Norm = nn.LayerNorm,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        self.norm = norm(4 * dim, **dd)
        self.reduction = nn.Linear(4 * dim, out_dim, bias=False, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        x = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))  # (B, H/2, 2, W/2, 2, C)
        return self.reduction(self.norm(x.permute(0, 1, 3, 4, 2, 5).flatten(3)))
