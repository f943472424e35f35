"""Other implementations of our blocks, built with the same weights."""

import importlib
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

import torch
from timm.layers.cbam import CbamModule
from timm.layers.coord_attn import CoordAttn
from timm.models.davit import ChannelAttention as TimmChannelAttention
from timm.models.davit import WindowAttention as TimmWindowAttention
from timm.models.twins import GlobalSubSampleAttn, LocallyGroupedAttn
from torch import nn

from visionattn.catalog import Card
from visionattn.ops import use_backend

__all__ = [
    "UNFIT",
    "Baseline",
    "FixedCondition",
    "PairedImages",
    "PlainOps",
    "fightingcv_plugin",
    "literal",
    "timm_mixer",
    "timm_plugin",
    "with_baseline_blocks",
]

# Makes another implementation of one of our modules, with its weights.
Baseline = Callable[[nn.Module], nn.Module]


def literal(card: Card, *, loops: bool = False) -> Baseline | None:
    """The literal formula of a mechanism; None if there is none.

    Args:
        card: Of the mechanism.
        loops: Whether the formula may go position by position.
    """
    if card.reference is None:
        return None
    module = importlib.import_module(f"visionattn.reference.{card.reference}")
    if getattr(module, "LOOPS", False) and not loops:
        return None

    def in_the_same_place(ours: Any) -> nn.Module:
        changed: nn.Module = ours.around(module.naive_of(ours.module))
        return changed

    naive_of: Baseline = module.naive_of
    return in_the_same_place if card.further_inputs else naive_of


def with_baseline_blocks(baseline: Baseline, cls: Any) -> Baseline:
    """A network in which the baseline replaces each block of a class.

    Args:
        baseline: Makes the replacement of a block.
        cls: The blocks' class.
    """

    def rebuild(network: nn.Module) -> nn.Module:
        network = deepcopy(network)
        for module in list(network.modules()):
            for name, child in module.named_children():
                if isinstance(child, cls):
                    setattr(module, name, baseline(child))
        return network

    return rebuild


class FixedCondition(nn.Module):
    """A gate with its second input, which is called with the map alone.

    Args:
        module: The gate.
        condition: Its second input, which needs no gradient.
    """

    condition: torch.Tensor

    def __init__(self, module: nn.Module, condition: torch.Tensor) -> None:
        super().__init__()
        self.module = module
        self.register_buffer("condition", condition.clone())

    def around(self, module: nn.Module) -> "FixedCondition":
        """Another gate with the same second input."""
        return FixedCondition(module, self.condition)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.module(x, self.condition)


class PairedImages(nn.Module):
    """What takes two sets of tokens, or views of one object, called with a map: halves of the batch are the sets.

    Args:
        module: The mixer or head.
        views: Whether it takes views.
    """

    def __init__(self, module: nn.Module, views: bool) -> None:
        super().__init__()
        self.module = module
        self.views = views

    def around(self, module: nn.Module) -> "PairedImages":
        """Another mixer that is called likewise."""
        return PairedImages(module, self.views)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        sets = (torch.stack(x.chunk(2), 1),) if self.views else x.flatten(1, 2).chunk(2)
        out = self.module(*sets)
        return torch.cat([part.flatten(1) for part in (out if isinstance(out, tuple) else (out,))], 1)


class PlainOps(nn.Module):
    """A module whose operations run PyTorch's formulations instead of our kernels."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = deepcopy(module)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with use_backend("torch"):
            return self.module(x)


def timm_plugin(name: str) -> Baseline | None:
    """timm's layer for a plug-in; None if it has no equivalent (its `EfficientLocalAttn` is a different block)."""
    return {"cbam": _timm_cbam, "coord": _timm_coord}.get(name)


def _timm_cbam(ours: Any) -> nn.Module:
    mlp, gate = ours.channel_gate, ours.spatial_gate
    theirs = CbamModule(mlp.fc1.in_features, rd_channels=mlp.fc1.out_features, mlp_bias=True)
    state = {f"channel.{key}": value for key, value in mlp.state_dict().items()}
    state = {key: value[..., None, None] if key.endswith("weight") else value for key, value in state.items()}
    # The mean stands before the maximum there.
    state["spatial.conv.conv.weight"] = gate.conv.weight.detach().flip(1)
    state |= {f"spatial.conv.bn.{key}": value for key, value in gate.bn.state_dict().items()}
    theirs.load_state_dict(state)
    theirs.spatial.conv.bn.momentum = gate.bn.momentum
    return theirs


def _timm_coord(ours: Any) -> nn.Module:
    conv = ours.conv1
    theirs = CoordAttn(conv.in_channels, rd_channels=conv.out_channels, bias=True)
    theirs.load_state_dict(ours.state_dict())
    return theirs


# Why blocks of fightingcv-attention 1.0.0 cannot be compared.
UNFIT = {
    "bam": "its dilated convolutions are not padded to equal size: it runs on maps of 7x7 alone",
    "cbam": "another function: no normalisation, no biases in the MLP, the input added to the result",
}


def fightingcv_plugin(name: str) -> Baseline | None:
    """The layer of the package fightingcv-attention; None if it has no equivalent.

    Raises:
        ImportError: If the package is not installed.
    """
    if name not in ("coord", "triplet"):
        return None
    attention = importlib.import_module("fightingcv_attention.attention." + _FIGHTINGCV[name])

    def build(ours: Any) -> nn.Module:
        state = ours.state_dict()
        if name == "coord":
            theirs = attention.CoordAtt(ours.conv1.in_channels, ours.conv1.in_channels)
        else:
            theirs = attention.TripletAttention(no_spatial=ours.hw is None)
            state = {key.replace(".", ".conv.", 1): value for key, value in state.items()}
        theirs.load_state_dict(state)
        return theirs

    return build


_FIGHTINGCV = {"coord": "CoordAttention", "triplet": "TripletAttention"}


def timm_mixer(name: str, dim: int, num_heads: int, sr_ratio: int) -> Baseline | None:
    """timm's module for a mixer; None if it has none.

    Args:
        name: Name of the mixer's card.
        dim: Width.
        num_heads: Number of heads.
        sr_ratio: Side of the patches that become one key.
    """
    build = {
        "davit_channels": lambda: TimmChannelAttention(dim, num_heads, qkv_bias=True),
        "davit_windows": lambda: _TimmWindows(dim, num_heads),
        "twins_global": lambda: GlobalSubSampleAttn(dim, num_heads, sr_ratio=sr_ratio),
        "twins_local": lambda: LocallyGroupedAttn(dim, num_heads, ws=7),
    }.get(name)
    if build is None:
        return None

    def with_weights(ours: Any) -> nn.Module:
        theirs = build()
        theirs.load_state_dict(ours.state_dict())
        return _OnTokens(theirs)

    return with_weights


class _OnTokens(nn.Module):
    """timm's modules take `(B, N, C)` and the size of the map."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size = (x.size(1), x.size(2))
        tokens = x.flatten(1, 2)
        out = self.module(tokens) if isinstance(self.module, TimmChannelAttention) else self.module(tokens, size)
        return out.view(x.shape)


class _TimmWindows(nn.Module):
    """timm's DaViT partitions windows in the block, outside the module."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.module = TimmWindowAttention(dim, (7, 7), num_heads, qkv_bias=True)

    def forward(self, tokens: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        grid = size[0] // 7, size[1] // 7
        x = tokens.unflatten(1, (grid[0], 7, grid[1], 7)).transpose(2, 3).reshape(-1, 49, tokens.size(2))
        x = self.module(x).view(-1, *grid, 7, 7, tokens.size(2)).transpose(2, 3)
        return x.reshape(tokens.shape)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        return self.module.load_state_dict(state_dict, *args, **kwargs)
