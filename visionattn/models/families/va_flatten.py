"""FLatten Transformer: focused linear attention in five hosts (ICCV 2023, arXiv 2308.00442).

Official code: https://github.com/LeapLabTHU/FLatten-Transformer (no licence file), models/flatten_*.py: PVT, PVTv2,
Swin and CSwin. There is no official code of the DeiT host: `va_flatten_deit_*` have no class token and pool the mean,
and no parity is claimed for them.

Differs from the official code in: any input size (there, the encoding of positions fits one), channels-last inside. The
final norm of the official PVT, which is never applied, is dropped when its weights are loaded.

Golden: tests/golden/flatten_*_eval.npz (logits and means of the stages).
"""

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from timm.layers import to_2tuple
from torch import nn

from visionattn.mixers import CrossShapedWindowAttention, FocusedLinearAttention, WindowAttention

from ..builder import StateDict, family_cfgs, register_network, rename_keys
from ..hosts.published import OFFICIAL_KEYS, cswin_host, swin_host
from ..hosts.pyramid import BlockContext, Pyramid, fan_out_normal, imagenet_cfg
from ..layers import Mlp, PatchConv, PositionEmbedding, ResidualBranch, named_sequential

__all__ = ["FLattenCSwin", "FLattenDeiT", "FLattenPVT", "FLattenPVTv2", "FLattenSwin"]

_Norm = partial(nn.LayerNorm, eps=1e-6)


class _FLatten(Pyramid):
    """What the hosts share: which blocks attend linearly, and the blocks themselves.

    Args:
        dims: Width of each stage.
        depths: Blocks of each stage.
        num_heads: Heads of each stage.
        attn_type: A letter a stage: `L` linear attention, `S` the host's own, `M` and a number: so many linear blocks
            first, then the host's own.
        strides: Of each stage, from the picture.
        softmax: Builds the host's own mixer, called with its `BlockContext`, heads and drop rates.
        position: Whether a stage starts with a position embedding.
        mlp_ratios: Hidden width of the MLPs over the width, of each stage.
        mlp_conv: Whether MLPs have a depthwise convolution.
        norm: Builds the norms of the blocks.
        img_size: Nominal side of the picture, or height and width, for which positions are learnt; they are
            interpolated for others.
        focusing_factor: Power of the focused features.
        kernel_size: Side of the depthwise convolution of the values.
        lepe: Whether the values go through the host's convolution too.
        **kwargs: As `Pyramid`.

    Raises:
        ValueError: If `attn_type` does not name one kind a stage.
    """

    def __init__(
        self,
        dims: Sequence[int],
        depths: Sequence[int],
        num_heads: Sequence[int],
        *,
        attn_type: str,
        strides: Sequence[int],
        softmax: Callable[..., nn.Module] | None = None,
        position: bool = False,
        mlp_ratios: Sequence[float] | None = None,
        mlp_conv: bool = False,
        norm: Callable[..., nn.Module] = nn.LayerNorm,
        img_size: int | tuple[int, int] = 224,
        focusing_factor: int = 3,
        kernel_size: int = 5,
        lepe: bool = False,
        **kwargs: Any,
    ) -> None:
        linear = _linear_blocks(attn_type, depths, softmax is not None)

        def block(place: BlockContext, **dd: Any) -> nn.Module:
            stage, dim = place.stage, place.dim
            grid = tuple(-(-side // strides[stage]) for side in to_2tuple(img_size))
            branch = partial(ResidualBranch, dim, norm=norm, drop_path=place.drop_path, **dd)
            if place.block < linear[stage]:
                mixer = FocusedLinearAttention(
                    dim,
                    num_heads=num_heads[stage],
                    grid_size=grid,
                    focusing_factor=focusing_factor,
                    kernel_size=kernel_size,
                    lepe=lepe,
                    proj_drop=place.proj_drop,
                    **dd,
                )
            else:
                drops = {"attn_drop": place.attn_drop, "proj_drop": place.proj_drop}
                mixer = softmax(place, num_heads=num_heads[stage], **drops, **dd)
            first = {"position": PositionEmbedding(dim, grid, **dd)} if position and place.block == 0 else {}
            ratio = mlp_ratios[stage] if mlp_ratios else 4.0
            mlp = Mlp(dim, ratio=ratio, conv=mlp_conv, drop=place.proj_drop, **dd)
            return named_sequential(**first, attn=branch(mixer), mlp=branch(mlp))

        super().__init__(dims, depths, block=block, **kwargs)


def _linear_blocks(attn_type: str, depths: Sequence[int], has_softmax: bool) -> list[int]:
    letters = re.findall(r"L|S|M\d+", attn_type)
    if "".join(letters) != attn_type or len(letters) != len(depths) or (not has_softmax and set(letters) != {"L"}):
        kinds = "L, S or M and a number" if has_softmax else "L"
        raise ValueError(f"attn_type must name {kinds} for each of {len(depths)} stages, got {attn_type!r}")
    return [depth if kind == "L" else int(kind[1:] or 0) for kind, depth in zip(letters, depths, strict=True)]


class FLattenSwin(_FLatten):
    """Swin, linear attention to the whole map in its first stages. `(B, in_chans, H, W) -> (B, num_classes)`.

    Args:
        dims: Width of each stage.
        depths: Blocks of each stage.
        num_heads: Heads of each stage.
        attn_type: A letter a stage: `L` linear attention, `S` windows, `M` and a number: so many linear blocks first.
        window_size: Side of the windows.
        patch_size: Side of the stem's patches: 4, or less for small pictures.
        **kwargs: img_size, focusing_factor, kernel_size; in_chans, num_classes, global_pool, the drop rates, device,
            dtype.

    Raises:
        ValueError: If `attn_type` does not name one kind a stage.
    """

    def __init__(
        self,
        dims: Sequence[int],
        depths: Sequence[int],
        num_heads: Sequence[int],
        *,
        attn_type: str = "LLSS",
        window_size: int = 7,
        patch_size: int = 4,
        **kwargs: Any,
    ) -> None:
        def windows(place: BlockContext, **arguments: Any) -> nn.Module:
            shift = window_size // 2 if place.block % 2 else 0
            return WindowAttention(place.dim, window_size=window_size, shift_size=shift, **arguments)

        super().__init__(
            dims,
            depths,
            num_heads,
            attn_type=attn_type,
            strides=[patch_size * 2**i for i in range(len(dims))],
            softmax=windows,
            **swin_host(patch_size),
            **kwargs,
        )


class FLattenCSwin(_FLatten):
    """CSwin, linear attention to the whole map in its first stages. `(B, in_chans, H, W) -> (B, num_classes)`.

    Args:
        dims: Width of each stage.
        depths: Blocks of each stage.
        num_heads: Heads of each stage.
        attn_type: A letter a stage: `L` linear attention, `S` stripes, `M` and a number: so many linear blocks first.
        split_sizes: Breadth of the stripes of each stage; the last stage attends to the whole map.
        patch_stride: Step of the stem: 4, or less for small pictures.
        **kwargs: img_size, focusing_factor, kernel_size; in_chans, num_classes, global_pool, the drop rates, device,
            dtype.

    Raises:
        ValueError: If `attn_type` does not name one kind a stage.
    """

    def __init__(
        self,
        dims: Sequence[int],
        depths: Sequence[int],
        num_heads: Sequence[int],
        *,
        attn_type: str = "LLSS",
        split_sizes: Sequence[int] = (1, 2, 7, 7),
        patch_stride: int = 4,
        **kwargs: Any,
    ) -> None:
        def stripes(place: BlockContext, **arguments: Any) -> nn.Module:
            full = place.stage == len(dims) - 1
            return CrossShapedWindowAttention(place.dim, split_size=split_sizes[place.stage], full=full, **arguments)

        super().__init__(
            dims,
            depths,
            num_heads,
            attn_type=attn_type,
            strides=[patch_stride * 2**i for i in range(len(dims))],
            softmax=stripes,
            lepe=True,
            **cswin_host(patch_stride),
            **kwargs,
        )


class FLattenPVT(_FLatten):
    """PVT with focused linear attention, keys not reduced. `(B, in_chans, H, W) -> (B, num_classes)`.

    Args:
        dims: Width of each stage.
        depths: Blocks of each stage.
        num_heads: Heads of each stage.
        mlp_ratios: Hidden width of the MLPs over the width, of each stage.
        patch_size: Side of the stem's patches: 4, or less for small pictures.
        **kwargs: img_size, focusing_factor, kernel_size; in_chans, num_classes, global_pool, the drop rates, device,
            dtype.
    """

    def __init__(
        self,
        dims: Sequence[int],
        depths: Sequence[int],
        num_heads: Sequence[int],
        mlp_ratios: Sequence[float] = (8.0, 8.0, 4.0, 4.0),
        *,
        patch_size: int = 4,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            dims,
            depths,
            num_heads,
            attn_type="L" * len(dims),
            strides=[patch_size * 2**i for i in range(len(dims))],
            position=True,
            mlp_ratios=mlp_ratios,
            norm=_Norm,
            stem=partial(PatchConv, kernel_size=patch_size, stride=patch_size, norm=nn.LayerNorm),
            downsample=partial(PatchConv, kernel_size=2, stride=2, norm=nn.LayerNorm),
            no_weight_decay_parts=(".position.",),
            **kwargs,
        )


class FLattenPVTv2(_FLatten):
    """PVTv2 with focused linear attention, keys not reduced. `(B, in_chans, H, W) -> (B, num_classes)`.

    Args:
        dims: Width of each stage.
        depths: Blocks of each stage.
        num_heads: Heads of each stage.
        mlp_ratios: Hidden width of the MLPs over the width, of each stage.
        patch_stride: Step of the stem: 4, or less for small pictures.
        **kwargs: img_size, focusing_factor, kernel_size; in_chans, num_classes, global_pool, the drop rates, device,
            dtype.
    """

    def __init__(
        self,
        dims: Sequence[int],
        depths: Sequence[int],
        num_heads: Sequence[int],
        mlp_ratios: Sequence[float] = (8.0, 8.0, 4.0, 4.0),
        *,
        patch_stride: int = 4,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            dims,
            depths,
            num_heads,
            attn_type="L" * len(dims),
            strides=[patch_stride * 2**i for i in range(len(dims))],
            mlp_ratios=mlp_ratios,
            mlp_conv=True,
            norm=_Norm,
            stem=partial(PatchConv, kernel_size=7, stride=patch_stride, padding=3, norm=nn.LayerNorm),
            downsample=partial(PatchConv, kernel_size=3, stride=2, padding=1, norm=nn.LayerNorm),
            stage_norm=_Norm,
            conv_init=fan_out_normal,
            **kwargs,
        )


class FLattenDeiT(_FLatten):
    """A columnar transformer with linear attention, no class token. `(B, in_chans, H, W) -> (B, num_classes)`.

    Args:
        dim: Width.
        depth: Number of blocks, each of which can be read as a feature map.
        num_heads: Heads.
        patch_size: Side of the patches.
        img_size: Nominal side of the picture, or height and width.
        **kwargs: focusing_factor, kernel_size; in_chans, num_classes, global_pool, the drop rates, device, dtype.
    """

    def __init__(
        self,
        dim: int,
        depth: int = 12,
        num_heads: int = 3,
        *,
        patch_size: int = 16,
        img_size: int | tuple[int, int] = 224,
        **kwargs: Any,
    ) -> None:
        grid = tuple(-(-side // patch_size) for side in to_2tuple(img_size))

        def stem(in_chans: int, dim: int, **dd: Any) -> nn.Module:
            patches = PatchConv(in_chans, dim, kernel_size=patch_size, stride=patch_size, pad_to_stride=True, **dd)
            return named_sequential(patches=patches, position=PositionEmbedding(dim, grid, mode="bicubic", **dd))

        super().__init__(
            [dim] * depth,
            [1] * depth,
            [num_heads] * depth,
            attn_type="L" * depth,
            strides=[patch_size] * depth,
            norm=_Norm,
            img_size=img_size,
            stem=stem,
            final=_Norm,
            no_weight_decay_parts=(".position.",),
            **kwargs,
        )


_OFFICIAL = (
    # DeiT: blocks without stages.
    (r"^blocks\.(\d+)\.", r"stages.\1.blocks.0."),
    (r"^pos_embed$", "stem.position.weight"),
    # PVT and PVTv2 count from 1.
    (r"^patch_embed1\.proj\.", "stem.conv."),
    (r"^patch_embed1\.norm\.", "stem.norm."),
    (r"^patch_embed(\d)\.proj\.", lambda m: f"stages.{int(m[1]) - 1}.downsample.conv."),
    (r"^patch_embed(\d)\.norm\.", lambda m: f"stages.{int(m[1]) - 1}.downsample.norm."),
    (r"^pos_embed(\d)$", lambda m: f"stages.{int(m[1]) - 1}.blocks.0.position.weight"),
    (r"^block(\d)\.(\d+)\.", lambda m: f"stages.{int(m[1]) - 1}.blocks.{m[2]}."),
    (r"^norm(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.norm."),
    (r"\.dwconv\.dwconv\.", ".conv."),
    *OFFICIAL_KEYS,
)


def checkpoint_filter_fn(state_dict: StateDict, model: nn.Module) -> StateDict:
    """Maps the official formats of all hosts to our keys and shapes; our own pass through.

    Args:
        state_dict: Flat weights, without prefixes.
        model: The network they are for.
    """
    native = rename_keys(state_dict, _OFFICIAL)
    for name, module in model.named_modules():
        if isinstance(module, FocusedLinearAttention):
            native = FocusedLinearAttention.to_native(native, f"{name}.")
    own = model.state_dict()
    columnar = isinstance(model, FLattenDeiT)
    result = {}
    for key, value in native.items():
        if columnar:
            key = key.replace("stem.conv.", "stem.patches.conv.")
        if key.endswith((".relative_position_index", ".attn_mask")):
            continue  # tables that follow from the size of the picture
        if isinstance(model, FLattenPVT) and key.startswith("final."):
            continue  # never applied
        if key.endswith("position.weight") and value.ndim == 3 and key in own:
            value = value.reshape(own[key].shape) if value.numel() == own[key].numel() else value
        result[key] = value
    return result


def _args(width: int, depths: Sequence[int], heads: int, **more: Any) -> dict[str, Any]:
    widths, counts = (tuple(first * 2**i for i in range(4)) for first in (width, heads))
    return {"dims": widths, "depths": tuple(depths), "num_heads": counts, **more}


_PVT = {"dims": (64, 128, 320, 512), "num_heads": (1, 2, 5, 8)}
_384 = {"img_size": 384}
_MODELS: dict[str, tuple[type[Pyramid], dict[str, Any]]] = {
    "deit_tiny": (FLattenDeiT, {"dim": 192, "num_heads": 3}),
    "deit_small": (FLattenDeiT, {"dim": 384, "num_heads": 6}),
    "pvt_tiny": (FLattenPVT, {**_PVT, "depths": (2, 2, 2, 2)}),
    "pvt_small": (FLattenPVT, {**_PVT, "depths": (3, 4, 6, 3)}),
    "pvt_medium": (FLattenPVT, {**_PVT, "depths": (3, 4, 18, 3)}),
    "pvt_large": (FLattenPVT, {**_PVT, "depths": (3, 8, 27, 3)}),
    "pvtv2_b0": (FLattenPVTv2, {**_PVT, "dims": (32, 64, 160, 256), "depths": (2, 2, 2, 2)}),
    "pvtv2_b1": (FLattenPVTv2, {**_PVT, "depths": (2, 2, 2, 2)}),
    "pvtv2_b2": (FLattenPVTv2, {**_PVT, "depths": (3, 4, 6, 3)}),
    "pvtv2_b3": (FLattenPVTv2, {**_PVT, "depths": (3, 4, 18, 3)}),
    "pvtv2_b4": (FLattenPVTv2, {**_PVT, "depths": (3, 8, 27, 3)}),
    "swin_tiny": (FLattenSwin, _args(96, (2, 2, 6, 2), 3)),
    "swin_small": (FLattenSwin, _args(96, (2, 2, 18, 2), 3)),
    "swin_base": (FLattenSwin, _args(128, (2, 2, 18, 2), 4)),
    "swin_base_384": (FLattenSwin, _args(128, (2, 2, 18, 2), 4, window_size=12, **_384)),
    "cswin_tiny": (FLattenCSwin, _args(64, (2, 4, 18, 1), 2)),
    "cswin_small": (FLattenCSwin, _args(64, (2, 4, 32, 2), 2)),
    "cswin_base": (FLattenCSwin, _args(96, (3, 6, 29, 2), 4)),
    "cswin_base_384": (FLattenCSwin, _args(96, (3, 6, 29, 2), 4, split_sizes=(1, 2, 12, 12), **_384)),
}
_MODELS = {f"va_flatten_{name}": entry for name, entry in _MODELS.items()}


def _cfg(name: str, **kwargs: Any) -> dict[str, Any]:
    fields = {"license": "apache-2.0", **kwargs}
    if "_384" in name:
        fields = {"input_size": (3, 384, 384), "pool_size": (12, 12), "crop_pct": 1.0, **fields}
    if "deit" in name:
        fields = {"first_conv": "stem.patches.conv", "pool_size": (14, 14), **fields}
    return imagenet_cfg(
        paper_ids="arXiv:2308.00442", origin_url="https://github.com/LeapLabTHU/FLatten-Transformer", **fields
    )


default_cfgs = family_cfgs(_MODELS, _cfg)

for _name, (_class, _arguments) in _MODELS.items():
    register_network(
        __name__,
        _name,
        f"FLatten in {_name.split('_')[2]}, {' '.join(_name.split('_')[3:])}.",
        _class,
        to_native=checkpoint_filter_fn,
        feature_cfg={
            "out_indices": (2, 5, 8, 11) if _class is FLattenDeiT else (0, 1, 2, 3),
            "feature_cls": "getter",
        },
        **_arguments,
    )
