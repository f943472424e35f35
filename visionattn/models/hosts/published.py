"""The published hosts that several papers put their mixers into: Swin, CSwin, PVT and PVTv2, as arguments of `Pyramid`,
and the names of their weights.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import nn

from ..layers import PatchConv, PatchMerging
from .backbone import fan_out_normal

__all__ = ["OFFICIAL_KEYS", "TIMM_KEYS", "cswin_host", "doubling", "pvt_host", "pvtv2_host", "swin_host"]

# Names of timm's plain vision transformers, which are DeiT's, and ours.
TIMM_KEYS = (
    (r"^patch_embed\.proj\.", "stem.conv."),
    (r"^pos_embed$", "position.weight"),
    (r"^(blocks\.\d+)\.norm1\.", r"\1.attn.norm."),
    (r"^(blocks\.\d+)\.norm2\.", r"\1.mlp.norm."),
    (r"^(blocks\.\d+)\.ls1\.gamma$", r"\1.attn.gamma"),
    (r"^(blocks\.\d+)\.ls2\.gamma$", r"\1.mlp.gamma"),
    (r"^(blocks\.\d+\.(?:attn|mlp))\.(?!fn\.|norm\.|gamma)", r"\1.fn."),
    (r"^(?:fc_)?norm\.", "final."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
)

_Norm = partial(nn.LayerNorm, eps=1e-6)


def doubling(width: int, depths: Sequence[int], heads: int) -> dict[str, Any]:
    """Sizes of four stages, each twice as wide as the one before, with twice the heads.

    Args:
        width: Of the first.
        depths: Blocks of each.
        heads: Of the first.
    """
    widths, counts = (tuple(first * 2**i for i in range(4)) for first in (width, heads))
    return {"dims": widths, "depths": depths, "num_heads": counts}


def swin_host(patch_size: int = 4) -> dict[str, Any]:
    """Swin (arXiv 2103.14030) without its mixers, as arguments of `Pyramid`.

    Args:
        patch_size: Side of the stem's patches: 4, or less for small pictures.
    """
    return {
        "stem": partial(PatchConv, kernel_size=patch_size, stride=patch_size, norm=nn.LayerNorm, pad_to_stride=True),
        "downsample": PatchMerging,
        "final_norm": nn.LayerNorm,
        "no_weight_decay_parts": ("relative_position_bias_table",),
    }


def cswin_host(patch_stride: int = 4) -> dict[str, Any]:
    """CSwin (arXiv 2107.00652) without its mixers, as arguments of `Pyramid`.

    Args:
        patch_stride: Step of the stem: 4, or less for small pictures.
    """
    return {
        "stem": partial(PatchConv, kernel_size=7, stride=patch_stride, padding=2, norm=nn.LayerNorm),
        "downsample": partial(PatchConv, kernel_size=3, stride=2, padding=1, norm=nn.LayerNorm),
        "final_norm": nn.LayerNorm,
    }


def pvt_host(patch_size: int = 4) -> dict[str, Any]:
    """PVT (arXiv 2102.12122) without its mixers, as arguments of `Pyramid`.

    Args:
        patch_size: Side of the stem's patches: 4, or less for small pictures.
    """
    return {
        "stem": partial(PatchConv, kernel_size=patch_size, stride=patch_size, norm=nn.LayerNorm),
        "downsample": partial(PatchConv, kernel_size=2, stride=2, norm=nn.LayerNorm),
        "no_weight_decay_parts": (".position.",),
    }


def pvtv2_host(patch_stride: int = 4) -> dict[str, Any]:
    """PVTv2 (arXiv 2106.13797) without its mixers, as arguments of `Pyramid`.

    Args:
        patch_stride: Step of the stem: 4, or less for small pictures.
    """
    return {
        "stem": partial(PatchConv, kernel_size=7, stride=patch_stride, padding=3, norm=nn.LayerNorm),
        "downsample": partial(PatchConv, kernel_size=3, stride=2, padding=1, norm=nn.LayerNorm),
        "stage_norm": _Norm,
        "conv_init": fan_out_normal,
    }


# Names in the official code of both, in turn, and ours. Our own pass through.
OFFICIAL_KEYS = (
    (r"^(?:patch_embed\.proj|stage1_conv_embed\.0)\.", "stem.conv."),
    (r"^(?:patch_embed\.norm|stage1_conv_embed\.2)\.", "stem.norm."),
    # Swin counts a stage's downsampling to the stage before, CSwin counts stages from 1.
    (r"^layers\.(\d+)\.downsample\.", lambda m: f"stages.{int(m[1]) + 1}.downsample."),
    (r"^merge(\d)\.", r"stages.\1.downsample."),
    (r"^layers\.", "stages."),
    (r"^stage(\d)\.(\d+)\.", lambda m: f"stages.{int(m[1]) - 1}.blocks.{m[2]}."),
    (r"(blocks\.\d+)\.(attn|mlp)\.(?!fn\.|norm\.)", r"\1.\2.fn."),
    (r"(blocks\.\d+)\.(qkv|proj|attns)\.", r"\1.attn.fn.\2."),
    (r"(blocks\.\d+)\.norm1\.", r"\1.attn.norm."),
    (r"(blocks\.\d+)\.norm2\.", r"\1.mlp.norm."),
    (r"^norm\.", "final."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
)
