"""Finds the attention of vision transformers of timm and of this package, and replaces it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.layers import Attention, AttentionRope, to_2tuple
from timm.models.beit import Attention as BeitAttention
from timm.models.cait import TalkingHeadAttn
from timm.models.davit import ChannelBlock, SpatialBlock
from timm.models.eva import EvaAttention
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.swin_transformer_v2 import SwinTransformerV2Block
from timm.models.xcit import XCA
from torch import nn

from ._replaced import ChannelsFirstBlock, MapBlock, PrefixedMap, TokenAttention

__all__ = ["SOUGHT", "Site", "find_sites"]

SOUGHT = "the blocks of timm's ViT, DeiT, BEiT, EVA, CaiT, XCiT, Swin, Swin V2 and DaViT, and of our own networks"
_TOKENS = (Attention, AttentionRope, BeitAttention, EvaAttention, TalkingHeadAttn, XCA)


@dataclass(frozen=True)
class Site:
    """The attention of a block, which can be replaced.

    Args:
        name: Of the attention in the network.
        attention: What is there.
        dim: Width.
        prefix: Number of extra tokens that it gets before those of the patches.
        grid: Height and width of its map at the nominal size; none where that is not known.
        install: Puts a mixer there, given it and whether it took over the weights.
        position: What the host hands to its attention, and only attention uses: `rotate`, `bias` or nothing.
        keywords: Arguments of a mixer that say what is there now: the size and shift of its windows.
    """

    name: str
    attention: Any
    dim: int
    prefix: int
    grid: tuple[int, int] | None
    install: Callable[[nn.Module, bool], None] = field(repr=False)
    position: tuple[str, ...] = ()
    keywords: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_heads(self) -> int:
        return int(getattr(self.attention, "num_heads", 1))


def find_sites(model: nn.Module) -> list[Site]:
    """Every attention that can be replaced, in the order of the network."""
    return list(_sites(model))


def _sites(model: Any) -> Iterator[Site]:
    # What `features_only` makes holds the network in `model`.
    network: Any = model if hasattr(model, "patch_embed") else getattr(model, "model", model)
    prefix = int(getattr(network, "num_prefix_tokens", 0))
    module: Any
    for name, module in model.named_modules():
        owner = model.get_submodule(name.rpartition(".")[0])
        last = name.rpartition(".")[2]
        if isinstance(module, _TOKENS):
            tokens = 0 if isinstance(module, (TalkingHeadAttn, XCA)) else prefix
            yield _token_site(network, owner, last, name, module, tokens)
        elif isinstance(module, (SwinTransformerBlock, SwinTransformerV2Block)):
            windows = {"window_size": tuple(module.window_size), "shift_size": tuple(module.shift_size)}
            install = _block_installer(owner, last, module)
            grid = to_2tuple(module.input_resolution)
            yield Site(f"{name}.attn", module.attn, module.dim, 0, grid, install, keywords=windows)
        elif isinstance(module, (SpatialBlock, ChannelBlock)):
            dim = module.attn.proj.in_features
            block: Any = module
            spatial = isinstance(module, SpatialBlock)
            windows = {"window_size": to_2tuple(block.window_size), "shift_size": (0, 0)} if spatial else {}
            install = _block_installer(owner, last, module)
            yield Site(f"{name}.attn", module.attn, dim, 0, None, install, keywords=windows)
        elif last != "mlp" and _is_own_branch(module) and not getattr(module.fn, "cross_layer", False):
            yield _own_site(module, f"{name}.fn", prefix)


def _is_own_branch(module: nn.Module) -> bool:
    """Whether this is a residual branch of our hosts, which is a parent of this module."""
    return all(hasattr(module, part) for part in ("fn", "norm", "gamma", "add"))


def _token_site(model: Any, owner: nn.Module, last: str, name: str, module: Any, prefix: int) -> Site:
    patches: Any = model.patch_embed
    sides = zip(to_2tuple(patches.img_size), to_2tuple(patches.patch_size), strict=True)
    height, width = getattr(patches, "grid_size", None) or (-(-side // size) for side, size in sides)
    table = getattr(module, "relative_position_bias_table", None)
    position = []
    if isinstance(module, (AttentionRope, EvaAttention)) and getattr(model, "rope", None) is not None:
        position.append("rotate")
    if table is not None or getattr(model, "rel_pos_bias", None) is not None:
        position.append("bias")

    def install(mixer: nn.Module, kept: bool) -> None:
        held = mixer
        if prefix and not hasattr(mixer, "forward_tokens"):
            held = PrefixedMap(mixer, None if kept else module)
        bias = None if table is None else (table, module.relative_position_index)
        half = bool(getattr(module, "rotate_half", False))
        setattr(
            owner,
            last,
            TokenAttention(held, prefix, (height, width), bias=bias, rotate_half=half).train(module.training),
        )

    return Site(name, module, module.proj.out_features, prefix, (height, width), install, tuple(position))


def _block_installer(owner: nn.Module, last: str, block: Any) -> Callable[[nn.Module, bool], None]:
    def install(mixer: nn.Module, kept: bool) -> None:
        new: nn.Module
        if isinstance(block, (SpatialBlock, ChannelBlock)):
            new = ChannelsFirstBlock(block, mixer)
        else:
            new = MapBlock(block, mixer, norm_last=isinstance(block, SwinTransformerV2Block))
        setattr(owner, last, new.train(block.training))

    return install


def _own_site(branch: Any, name: str, prefix: int) -> Site:
    before = branch.fn

    def install(mixer: nn.Module, kept: bool) -> None:
        if prefix and not hasattr(mixer, "forward_tokens"):
            mixer = PrefixedMap(mixer, None if kept else before)
        branch.fn = mixer.train(branch.training)

    norm: Any = branch.norm
    width = norm.weight.shape[0] if isinstance(getattr(norm, "weight", None), torch.Tensor) else norm.num_features
    return Site(name, before, width, prefix, None, install)
