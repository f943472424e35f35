"""One architecture for all token mixers: STM-Evaluation's (TPAMI 2025, arXiv 2211.05781), the fair test bed.

Everything but the mixer is the same: two strided convolutions as the stem, a strided convolution between stages, blocks
of a mixer and an MLP with layer scale, a norm after every stage, one pointwise convolution before pooling.

Official code: https://github.com/OpenGVLab/STM-Evaluation (MIT), classification/models: HaloNet, PVT, Swin
and ConvNeXt mixers. The other mixers are put into it here; each keeps the positional encoding of its own paper (Twins'
convolution after the first block, one convolution before each of DaViT's mixers) and takes the widths of Swin. BOAT is
Swin with attention in feature space in the shifted blocks of the first three stages; FLatten is linear in all stages;
LKCA has a kernel a head.

Differs from the official code in: any input size (there, attention masks and position embeddings fit one size, HaloNet
needs multiples of 224); the size nano for 32 px is ours.

Golden: tests/golden/stm_*.npz (logits, means of the stages, blocks).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from timm.layers import to_2tuple
from torch import nn

from visionattn.mixers import (
    AveragePool,
    ChannelAttention,
    DepthwiseConvMixer,
    FeatureSpaceLocalAttention,
    FocusedLinearAttention,
    GlobalSubsampledAttention,
    HaloAttention,
    LargeKernelConvAttention,
    LocallyGroupedAttention,
    SpatialReductionAttention,
    SpatialWindowAttention,
    WindowAttention,
)

from ..builder import StateDict, family_cfgs, register_network, rename_keys
from ..hosts.pyramid import BlockContext, Pyramid, imagenet_cfg, narrow_normal
from ..layers import BatchNorm, Mlp, PatchConv, PositionConv, PositionEmbedding, ResidualBranch, named_sequential

__all__ = ["STM", "Mechanism"]

_Norm = partial(nn.LayerNorm, eps=1e-6)
_SR_RATIOS = (8, 4, 2, 1)


@dataclass(frozen=True)
class Mechanism:
    """What a family of mixers puts into a block of the common architecture.

    Args:
        mixers: Builds the mixers of a block, by name: called with its `BlockContext`, its number of heads and its grid
            (height and width of the map at the nominal size of the picture), then `device` and `dtype`.
        position: Builds what tells the positions before the mixer, or none; called with the same.
        norm: Builds the norms of the blocks.
    """

    mixers: Callable[..., dict[str, nn.Module]]
    position: Callable[..., nn.Module | None] = lambda place, heads, grid, **dd: None
    norm: Callable[..., nn.Module] = _Norm


def _drops(place: BlockContext) -> dict[str, float]:
    return {"attn_drop": place.attn_drop, "proj_drop": place.proj_drop}


def _swin(place: BlockContext, heads: int, grid: tuple[int, int], **dd: Any) -> dict[str, nn.Module]:
    shift = 3 if place.block % 2 else 0
    return {"attn": WindowAttention(place.dim, num_heads=heads, window_size=7, shift_size=shift, **_drops(place), **dd)}


def _halo(place: BlockContext, heads: int, grid: tuple[int, int], **dd: Any) -> dict[str, nn.Module]:
    return {"attn": HaloAttention(place.dim, num_heads=heads, block_size=7, halo_size=3, **_drops(place), **dd)}


def _pvt(place: BlockContext, heads: int, grid: tuple[int, int], **dd: Any) -> dict[str, nn.Module]:
    sr_ratio = _SR_RATIOS[place.stage]
    return {"attn": SpatialReductionAttention(place.dim, num_heads=heads, sr_ratio=sr_ratio, **_drops(place), **dd)}


def _pvt_position(place: BlockContext, heads: int, grid: tuple[int, int], **dd: Any) -> nn.Module | None:
    return PositionEmbedding(place.dim, grid, mode="bilinear", **dd) if place.block == 0 else None


def _convnext(place: BlockContext, heads: int, grid: tuple[int, int], **dd: Any) -> dict[str, nn.Module]:
    return {"attn": DepthwiseConvMixer(place.dim, kernel_size=7, **dd)}


def _twins(place: BlockContext, heads: int, grid: tuple[int, int], **dd: Any) -> dict[str, nn.Module]:
    dd = {**_drops(place), **dd}
    if place.block % 2 == 0:
        return {"attn": LocallyGroupedAttention(place.dim, num_heads=heads, window_size=7, **dd)}
    return {"attn": GlobalSubsampledAttention(place.dim, num_heads=heads, sr_ratio=_SR_RATIOS[place.stage], **dd)}


def _twins_position(place: BlockContext, heads: int, grid: tuple[int, int], **dd: Any) -> nn.Module | None:
    return PositionConv(place.dim, **dd) if place.block == 1 else None


def _davit(place: BlockContext, heads: int, grid: tuple[int, int], **dd: Any) -> dict[str, nn.Module]:
    if place.block % 2 == 0:
        return {"attn": SpatialWindowAttention(place.dim, num_heads=heads, window_size=7, **_drops(place), **dd)}
    return {"attn": ChannelAttention(place.dim, num_heads=heads, proj_drop=place.proj_drop, **dd)}


def _davit_position(place: BlockContext, heads: int, grid: tuple[int, int], **dd: Any) -> nn.Module | None:
    return PositionConv(place.dim, **dd)


def _boat(place: BlockContext, heads: int, grid: tuple[int, int], **dd: Any) -> dict[str, nn.Module]:
    parts = _swin(place, heads, grid, **dd)
    if place.block % 2 and place.stage < 3:
        parts["content"] = FeatureSpaceLocalAttention(place.dim, num_heads=heads, **_drops(place), **dd)
    return parts


def _flatten(place: BlockContext, heads: int, grid: tuple[int, int], **dd: Any) -> dict[str, nn.Module]:
    dd = {"proj_drop": place.proj_drop, **dd}
    return {"attn": FocusedLinearAttention(place.dim, num_heads=heads, grid_size=grid, **dd)}


def _lkca(place: BlockContext, heads: int, grid: tuple[int, int], **dd: Any) -> dict[str, nn.Module]:
    dd = {"proj_drop": place.proj_drop, **dd}
    return {"attn": LargeKernelConvAttention(place.dim, grid_size=grid, groups="heads", num_heads=heads, **dd)}


def _pool(place: BlockContext, heads: int, grid: tuple[int, int], **dd: Any) -> dict[str, nn.Module]:
    return {"attn": AveragePool(place.dim, **dd)}


# The norms in the official blocks of HaloNet and PVT have PyTorch's epsilon.
MECHANISMS: dict[str, Mechanism] = {
    "boat": Mechanism(_boat),
    "convnext": Mechanism(_convnext),
    "davit": Mechanism(_davit, _davit_position),
    "flatten": Mechanism(_flatten),
    "halonet": Mechanism(_halo, norm=nn.LayerNorm),
    "lkca": Mechanism(_lkca),
    "pool": Mechanism(_pool),
    "pvt": Mechanism(_pvt, _pvt_position, norm=nn.LayerNorm),
    "swin": Mechanism(_swin),
    "twins": Mechanism(_twins, _twins_position),
}


def _stem(in_chans: int, dim: int, strides: tuple[int, int], **dd: Any) -> nn.Sequential:
    conv = partial(PatchConv, kernel_size=3, padding=1, norm=_Norm, **dd)
    return nn.Sequential(conv(in_chans, dim // 2, stride=strides[0]), nn.GELU(), conv(dim // 2, dim, stride=strides[1]))


def _final(dim: int, **dd: Any) -> nn.Sequential:
    return nn.Sequential(
        PatchConv(dim, dim * 3 // 2, kernel_size=1, stride=1, bias=False, norm=BatchNorm, **dd), nn.GELU()
    )


class STM(Pyramid):
    """The common architecture with one mechanism. `(B, in_chans, H, W) -> (B, num_classes)`.

    Args:
        mechanism: Name in `MECHANISMS`, or a `Mechanism`.
        dims: Width of each stage.
        depths: Blocks of each stage.
        num_heads: Heads of each stage.
        mlp_ratios: Hidden width of the MLPs over the width, of each stage.
        stem_strides: Steps of the stem's two convolutions.
        layer_scale: Start of the scale of each branch.
        img_size: Nominal side of the picture, or height and width: parameters that belong to positions are learnt for
            it and interpolated for other sizes.
        **kwargs: As `Pyramid`: in_chans, num_classes, global_pool, the drop rates, device, dtype.

    Raises:
        ValueError: If the mechanism is unknown.
    """

    def __init__(
        self,
        mechanism: str | Mechanism,
        dims: Sequence[int],
        depths: Sequence[int],
        num_heads: Sequence[int],
        mlp_ratios: Sequence[float] = (4.0, 4.0, 4.0, 4.0),
        *,
        stem_strides: tuple[int, int] = (2, 2),
        layer_scale: float = 1e-6,
        img_size: int | tuple[int, int] = 224,
        **kwargs: Any,
    ) -> None:
        if isinstance(mechanism, str):
            if mechanism not in MECHANISMS:
                raise ValueError(f"mechanism must be one of {', '.join(MECHANISMS)}, got {mechanism!r}")
            mechanism = MECHANISMS[mechanism]
        first = stem_strides[0] * stem_strides[1]

        def block(place: BlockContext, **dd: Any) -> nn.Module:
            stride = first * 2**place.stage
            at = (place, num_heads[place.stage], tuple(-(-side // stride) for side in to_2tuple(img_size)))
            branch = partial(
                ResidualBranch, place.dim, norm=mechanism.norm, layer_scale=layer_scale, drop_path=place.drop_path, **dd
            )
            position = mechanism.position(*at, **dd)
            mlp = Mlp(place.dim, ratio=mlp_ratios[place.stage], drop=place.proj_drop, **dd)
            return named_sequential(
                **({} if position is None else {"position": position}),
                **{name: branch(mixer) for name, mixer in mechanism.mixers(*at, **dd).items()},
                mlp=branch(mlp),
            )

        super().__init__(
            dims,
            depths,
            block=block,
            stem=partial(_stem, strides=stem_strides),
            downsample=partial(PatchConv, kernel_size=3, stride=2, padding=1, bias=False, norm=_Norm),
            stage_norm=_Norm,
            final=_final,
            final_dim=dims[-1] * 3 // 2,
            conv_init=narrow_normal,
            no_weight_decay_parts=(".position.", "relative_position_bias_table", ".height_rel", ".width_rel"),
            **kwargs,
        )


_OFFICIAL = (
    (r"^downsample_layers\.0\.stem\.0\.", "stem.0.conv."),
    (r"^downsample_layers\.0\.stem\.1\.", "stem.0.norm."),
    (r"^downsample_layers\.0\.stem\.3\.", "stem.2.conv."),
    (r"^downsample_layers\.0\.stem\.4\.", "stem.2.norm."),
    (r"^downsample_layers\.(\d+)\.reduction\.0\.", r"stages.\1.downsample.conv."),
    (r"^downsample_layers\.(\d+)\.reduction\.1\.", r"stages.\1.downsample.norm."),
    (r"^stage_norms\.(\d+)\.", r"stages.\1.norm."),
    (r"^conv_head\.0\.", "final.0.conv."),
    (r"^conv_head\.1\.", "final.0.norm."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
    (r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"(blocks\.\d+)\.(attn|mlp)\.", r"\1.\2.fn."),
    (r"(blocks\.\d+)\.gamma_1$", r"\1.attn.gamma"),
    (r"(blocks\.\d+)\.gamma_2$", r"\1.mlp.gamma"),
    (r"(blocks\.\d+)\.(?:norm1|dw_norm)\.", r"\1.attn.norm."),
    (r"(blocks\.\d+)\.(?:norm2|pw_norm)\.", r"\1.mlp.norm."),
    (r"(blocks\.\d+)\.pos_embed$", r"\1.position.weight"),
    (r"(blocks\.\d+)\.pwconv(\d)\.", r"\1.mlp.fn.fc\2."),
    (r"(blocks\.\d+)\.(dw_input_proj|dwconv|dw_out_proj)\.", r"\1.attn.fn.\2."),
)


def checkpoint_filter_fn(state_dict: StateDict, model: nn.Module) -> StateDict:
    """Maps the official format to our keys and shapes; our own pass through.

    Args:
        state_dict: Flat weights, without prefixes.
        model: The network they are for.
    """
    if "downsample_layers.0.stem.0.weight" not in state_dict:
        return state_dict
    native = {}
    for key, value in rename_keys(state_dict, _OFFICIAL).items():
        if key.endswith("gamma"):
            value = value.flatten()
        elif key.endswith(".position.weight"):
            value = value.permute(0, 2, 3, 1)
        native[key] = value
    # Tables that follow from the size of the picture.
    return {k: v for k, v in native.items() if not k.endswith(("relative_position_index", "attn_mask"))}


_DIMS = {
    "nano": (12, 24, 48, 96),
    "micro": (32, 64, 128, 256),
    "tiny": (96, 192, 384, 768),
    "small": (96, 192, 384, 768),
    "base": (128, 256, 512, 1024),
}
_SIZES: dict[str, dict[str, Any]] = {
    "nano": {"depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 8), "stem_strides": (1, 2), "img_size": 32},
    "micro": {"depths": (2, 2, 9, 2), "num_heads": (1, 2, 4, 8)},
    "tiny": {"depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)},
    "small": {"depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24)},
    "base": {"depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)},
}
_PVT = {"num_heads": (1, 2, 5, 8), "mlp_ratios": (8.0, 8.0, 4.0, 4.0)}
# Where the official sizes differ from Swin's.
_OWN_SIZES: dict[tuple[str, str], dict[str, Any]] = {
    ("convnext", "micro"): {"depths": (3, 3, 8, 3)},
    ("convnext", "tiny"): {"depths": (2, 2, 9, 2)},
    ("convnext", "small"): {"depths": (2, 2, 24, 2)},
    ("convnext", "base"): {"depths": (2, 2, 24, 2)},
    ("pvt", "micro"): {**_PVT, "dims": (32, 64, 160, 256), "depths": (2, 2, 3, 2)},
    ("pvt", "tiny"): {**_PVT, "dims": (64, 128, 320, 512), "depths": (3, 4, 9, 3)},
    ("pvt", "small"): {**_PVT, "dims": (64, 128, 320, 512), "depths": (3, 4, 21, 3)},
    ("pvt", "base"): {**_PVT, "dims": (64, 128, 320, 512), "depths": (3, 8, 45, 3), "mlp_ratios": (4.0,) * 4},
}
_REGISTERED = {
    **dict.fromkeys(("convnext", "davit", "halonet", "pvt", "swin", "twins"), tuple(_SIZES)),
    **dict.fromkeys(("boat", "flatten", "lkca"), ("nano", "micro", "tiny")),
    "pool": ("nano", "micro"),
}
# Registered name -> mechanism and size.
_MODELS = {f"va_stm_{name}_{size}": (name, size) for name, sizes in _REGISTERED.items() for size in sizes}
_PAPERS = {
    "boat": "arXiv:2201.13027",
    "convnext": "arXiv:2201.03545",
    "davit": "arXiv:2204.03645",
    "flatten": "arXiv:2308.00442",
    "halonet": "arXiv:2103.12731",
    "lkca": "arXiv:2401.05738",
    "pool": "arXiv:2111.11418",
    "pvt": "arXiv:2102.12122",
    "swin": "arXiv:2103.14030",
    "twins": "arXiv:2104.13840",
}


def _cfg(name: str, **kwargs: Any) -> dict[str, Any]:
    mechanism, size = _MODELS[name]
    small = {"input_size": (3, 32, 32), "pool_size": (2, 2), "num_classes": 10, "crop_pct": 1.0}
    fields = {
        "first_conv": "stem.0.conv",
        "license": "apache-2.0",
        "paper_ids": ["arXiv:2211.05781", _PAPERS[mechanism]],
        "origin_url": "https://github.com/OpenGVLab/STM-Evaluation",
        **(small if size == "nano" else {}),
        **kwargs,
    }
    return imagenet_cfg(**fields)


default_cfgs = family_cfgs(_MODELS, _cfg)

for _name, (_mechanism, _size) in _MODELS.items():
    register_network(
        __name__,
        _name,
        f"STM-Evaluation's unified architecture with {_mechanism}, size {_size}.",
        STM,
        to_native=checkpoint_filter_fn,
        feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
        mechanism=_mechanism,
        **{"dims": _DIMS[_size], **_SIZES[_size], **_OWN_SIZES.get((_mechanism, _size), {})},
    )
