"""DaViT: Dual Attention Vision Transformers (ECCV 2022, arXiv 2204.03645).

Blocks take turns: attention between the positions of a window, attention between the channels of a group. Each block
has two depthwise convolutions that tell where a position is.

Official code: https://github.com/dingmyu/davit (MIT), timm/models/davit.py and mmdet/mmseg/models/backbones/davit.py.

Differs from the official code in: `feature_norms=True` stands for the norms of the dense prediction code; the option
`cpe_act` is left out, which no published network uses; channels-last inside.

Golden: tests/golden/davit_*.npz. timm's own DaViT gives the same numbers for the same weights.
"""

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import nn

from visionattn.mixers.davit import ChannelAttention, SpatialWindowAttention

from ..builder import StateDict, rename_keys
from ..hosts.backbone import imagenet_cfg
from ..hosts.published import doubling
from ..hosts.pyramid import BlockContext, Pyramid
from ..layers import Block, Mlp, PatchConv, PositionConv, branch_builder
from ..registry import Network, register_family

__all__ = ["DaViT"]


class DaViT(Pyramid):
    """Window attention and channel attention, alternating. `(B, in_chans, H, W) -> (B, num_classes)`.

    Args:
        dims: Width of each stage.
        depths: Pairs of blocks of each stage: attention in windows, then between channels.
        num_heads: Heads, and groups of channels, of each stage.
        window_size: Side of the windows.
        mlp_ratio: Hidden width of the MLPs over the width.
        down_kernel_size: Side of the downsampling convolutions: 2, or 3 for overlapping patches.
        patch_stride: Step of the stem: 4, or less for small pictures.
        **kwargs: As `Pyramid`: feature_norms, in_chans, num_classes, global_pool, the drop rates, device, dtype.

    Raises:
        ValueError: If `down_kernel_size` is neither 2 nor 3.
    """

    def __init__(
        self,
        dims: Sequence[int],
        depths: Sequence[int],
        num_heads: Sequence[int],
        *,
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        down_kernel_size: int = 2,
        patch_stride: int = 4,
        **kwargs: Any,
    ) -> None:
        if down_kernel_size not in (2, 3):
            raise ValueError(f"down_kernel_size must be 2 or 3, got {down_kernel_size}")

        def block(context: BlockContext, **dd: Any) -> nn.Module:
            dim = context.dim
            branch = branch_builder(context, **dd)
            if context.block % 2 == 0:
                mixer: nn.Module = SpatialWindowAttention(dim, window_size=window_size, **context.keywords, **dd)
            else:
                mixer = ChannelAttention(dim, num_heads=context.num_heads, proj_drop=context.proj_drop, **dd)
            return Block(
                position1=PositionConv(dim, **dd),
                attn=branch(mixer),
                position2=PositionConv(dim, **dd),
                mlp=branch(Mlp(dim, ratio=mlp_ratio, drop=context.proj_drop, **dd)),
            )

        super().__init__(
            dims,
            [2 * depth for depth in depths],
            num_heads,
            block=block,
            stem=partial(
                PatchConv, kernel_size=7, stride=patch_stride, padding=3, norm=nn.LayerNorm, pad_to_stride=True
            ),
            downsample=partial(
                PatchConv,
                kernel_size=down_kernel_size,
                stride=2,
                padding=(down_kernel_size - 1) // 2,
                norm_first=nn.LayerNorm,
                pad_to_stride=True,
            ),
            head_norm=1e-5,
            **kwargs,
        )


def _in_pairs(match: re.Match[str]) -> str:
    """Renumbers blocks: official and timm's blocks are pairs, ours are single."""
    stage, pair, which = map(int, match.groups())
    return f"stages.{stage}.blocks.{2 * pair + which}."


_FORMATS = (
    (r"^patch_embeds\.0\.", "stem."),
    (r"^patch_embeds\.(\d+)\.", r"stages.\1.downsample."),
    (r"^stages\.(\d+)\.downsample\.norm\.", r"stages.\1.downsample.norm_first."),
    (r"^(stem|stages\.\d+\.downsample)\.proj\.", r"\1.conv."),
    (r"^(?:main_blocks\.|stages\.)(\d+)\.(?:blocks\.)?(\d+)\.(\d)\.", _in_pairs),
    (r"\.cpe\.0\.proj\.|\.cpe1\.proj\.", ".position1."),
    (r"\.cpe\.1\.proj\.|\.cpe2\.proj\.", ".position2."),
    (r"(blocks\.\d+)\.norm1\.", r"\1.attn.norm."),
    (r"(blocks\.\d+)\.norm2\.", r"\1.mlp.norm."),
    (r"(blocks\.\d+)\.attn\.(qkv|proj)\.", r"\1.attn.fn.\2."),
    (r"(blocks\.\d+)\.mlp\.(fc\d)\.", r"\1.mlp.fn.\2."),
    (r"^norm(\d)\.", r"feature_norms.\1."),
    (r"^norms\.", "head.norm."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
)


def checkpoint_filter_fn(state_dict: StateDict, model: nn.Module) -> StateDict:
    """Maps the official format and timm's to our keys; our own pass through.

    Args:
        state_dict: Flat weights, without prefixes.
        model: The network they are for.
    """
    return rename_keys(state_dict, _FORMATS)


_CFG = imagenet_cfg(paper_ids="arXiv:2204.03645", origin_url="https://github.com/dingmyu/davit", crop_pct=0.95)

register_family(
    __name__,
    {
        f"va_davit_{size}": Network(
            f"DaViT-{size.capitalize()}, {millions} M parameters.",
            DaViT,
            doubling(width, depths, width // 32),
            _CFG,
        )
        for size, millions, width, depths in (
            ("tiny", 28.4, 96, (1, 1, 3, 1)),
            ("small", 49.7, 96, (1, 1, 9, 1)),
            ("base", 88.0, 128, (1, 1, 9, 1)),
            ("large", 196.8, 192, (1, 1, 9, 1)),
            ("huge", 348.9, 256, (1, 1, 9, 1)),
            ("giant", 1406.5, 384, (1, 1, 12, 3)),
        )
    },
    checkpoint_filter_fn,
)
