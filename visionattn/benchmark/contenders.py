"""Other implementations of our blocks, made of ours with its weights."""

import importlib
from collections.abc import Callable
from copy import deepcopy

import torch
from timm.layers.cbam import CbamModule
from timm.layers.coord_attn import CoordAttn
from timm.models.davit import ChannelAttention as TimmChannelAttention
from timm.models.davit import WindowAttention as TimmWindowAttention
from torch import nn

from visionattn.ops import use_backend

__all__ = [
    "UNFIT",
    "OnTokens",
    "PlainOps",
    "TimmWindows",
    "fightingcv_plugin",
    "literal",
    "moved",
    "timm_plugin",
    "with_plugins",
]

Rival = Callable[[nn.Module], nn.Module]


def literal(name: str) -> Rival:
    """The literal formulation of a paper or official code: `naive_of` of `visionattn/reference/<name>.py`."""
    return importlib.import_module(f"visionattn.reference.{name}").naive_of


def with_plugins(rival: Rival, cls: type[nn.Module]) -> Rival:
    """Makes a network whose blocks of a class are each replaced by the rival.

    Args:
        rival: Makes the replacement of a block.
        cls: The blocks' class.
    """

    def rebuild(network: nn.Module) -> nn.Module:
        network = deepcopy(network)
        for module in list(network.modules()):
            for name, child in module.named_children():
                if isinstance(child, cls):
                    setattr(module, name, rival(child))
        return network

    return rebuild


class PlainOps(nn.Module):
    """A module whose operators take PyTorch's formulations, not our kernels."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = deepcopy(module)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with use_backend("torch"):
            return self.module(x)


def timm_plugin(name: str) -> Rival | None:
    """timm's own layer of a plug-in; None if it has no equal one (its `EfficientLocalAttn` is another block)."""
    return {"cbam": _timm_cbam, "coord": _timm_coord}.get(name)


def _timm_cbam(ours: nn.Module) -> nn.Module:
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


def _timm_coord(ours: nn.Module) -> nn.Module:
    conv = ours.conv1
    theirs = CoordAttn(conv.in_channels, rd_channels=conv.out_channels, bias=True)
    theirs.load_state_dict(ours.state_dict())
    return theirs


# Why blocks of fightingcv-attention 1.0.0 cannot be compared.
UNFIT = {
    "bam": "its dilated convolutions are not padded to equal size: it runs on maps of 7x7 alone",
    "cbam": "another function: no normalisation, no biases in the MLP, the input added to the result",
}


def fightingcv_plugin(name: str) -> Rival | None:
    """The layer of the package fightingcv-attention; None if it has no equal one.

    Raises:
        ImportError: If the package is not installed.
    """
    if name not in ("coord", "triplet"):
        return None
    attention = importlib.import_module("fightingcv_attention.attention." + _FIGHTINGCV[name])

    def build(ours: nn.Module) -> nn.Module:
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


class OnTokens(nn.Module):
    """timm's modules take `(B, N, C)` and the size of the map."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size = (x.size(1), x.size(2))
        tokens = x.flatten(1, 2)
        out = self.module(tokens) if isinstance(self.module, TimmChannelAttention) else self.module(tokens, size)
        return out.view(x.shape)


class TimmWindows(nn.Module):
    """timm's DaViT cuts the windows in the block, around the module."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.module = TimmWindowAttention(dim, (7, 7), num_heads, qkv_bias=True)

    def forward(self, tokens: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        grid = size[0] // 7, size[1] // 7
        x = tokens.unflatten(1, (grid[0], 7, grid[1], 7)).transpose(2, 3).reshape(-1, 49, tokens.size(2))
        x = self.module(x).view(-1, *grid, 7, 7, tokens.size(2)).transpose(2, 3)
        return x.reshape(tokens.shape)

    def load_state_dict(self, state_dict, *args, **kwargs):
        return self.module.load_state_dict(state_dict, *args, **kwargs)


def moved(module: nn.Module) -> nn.Module:
    """A module away from its start, where gates and tables may be constant."""
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_((0.2 if tensor.ndim < 2 or tensor.numel() < 4096 else 0.02) * torch.rand(tensor.shape))
    return module
