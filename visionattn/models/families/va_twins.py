"""Twins: Revisiting the Design of Spatial Attention in Vision Transformers (NeurIPS 2021, arXiv 2104.13840).

PCPVT: attention to a summary of the map in every block. SVT: attention inside windows and attention to a summary take
turns. Both learn where a position is from a depthwise convolution after the first block of each stage.

Official code: https://github.com/Meituan-AutoML/Twins (Apache-2.0), gvt.py and segmentation/gvt.py.

Differs from the official code in: any input size for all variants; the dense variant of SVT is `stage_norm=True` with
`pad_mask='official'`; channels-last inside.

Golden: tests/golden/twins_*.npz. timm's own Twins give the same numbers for the same weights.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import nn

from visionattn.mixers.twins import GlobalSubsampledAttention, LocallyGroupedAttention

from ..builder import StateDict, rename_keys
from ..hosts.backbone import fan_out_normal, imagenet_cfg
from ..hosts.published import doubling
from ..hosts.pyramid import BlockContext, Pyramid
from ..layers import Block, Mlp, PatchConv, PositionConv, branch_builder
from ..registry import Network, register_family

__all__ = ["Twins"]

_Norm = partial(nn.LayerNorm, eps=1e-6)


class Twins(Pyramid):
    """PCPVT and SVT. `(B, in_chans, H, W) -> (B, num_classes)`.

    Args:
        dims: Width of each stage.
        depths: Blocks of each stage.
        num_heads: Heads of each stage.
        mlp_ratios: Hidden width of the MLPs over the width, of each stage.
        sr_ratios: Side of the patches that are summarised to one key, of each stage.
        window_sizes: Side of the windows of each stage, in which every other block attends, from the first (SVT);
            none: all blocks attend to the summary (PCPVT).
        pad_mask: Whether windows attend to what they are filled up with: `none` (they do, as for classification),
            `exact` (never) or `official` (as the dense prediction code: never where both sides are filled up).
        remainder: What becomes of rows and columns that fill no patch of the summary: `crop` (left out, as published)
            or `pad`.
        stage_norm: A norm after each stage, as the dense prediction code of SVT has it.
        patch_size: Side of the stem's patches: 4, or less for small pictures.
        **kwargs: As `Pyramid`: in_chans, num_classes, global_pool, the drop rates, device, dtype.
    """

    def __init__(
        self,
        dims: Sequence[int],
        depths: Sequence[int],
        num_heads: Sequence[int],
        mlp_ratios: Sequence[float] = (4.0, 4.0, 4.0, 4.0),
        *,
        sr_ratios: Sequence[int] = (8, 4, 2, 1),
        window_sizes: Sequence[int] | None = None,
        pad_mask: str = "none",
        remainder: str = "crop",
        stage_norm: bool = False,
        patch_size: int = 4,
        **kwargs: Any,
    ) -> None:
        def block(context: BlockContext, **dd: Any) -> nn.Module:
            stage, dim, given = context.stage, context.dim, {**context.keywords, **dd}
            if window_sizes is not None and context.block % 2 == 0:
                side = window_sizes[stage]
                mixer: nn.Module = LocallyGroupedAttention(dim, window_size=side, pad_mask=pad_mask, **given)
            else:
                mixer = GlobalSubsampledAttention(dim, sr_ratio=sr_ratios[stage], remainder=remainder, **given)
            mlp = Mlp(dim, ratio=mlp_ratios[stage], drop=context.proj_drop, **dd)
            branch = branch_builder(context, norm=_Norm, **dd)
            position = {"position": PositionConv(dim, **dd)} if context.block == 0 else {}
            return Block(attn=branch(mixer), mlp=branch(mlp), **position)

        super().__init__(
            dims,
            depths,
            num_heads,
            block=block,
            stem=partial(PatchConv, kernel_size=patch_size, stride=patch_size, norm=nn.LayerNorm),
            downsample=partial(PatchConv, kernel_size=2, stride=2, norm=nn.LayerNorm),
            stage_norm=_Norm if stage_norm else None,
            final_norm=_Norm,
            conv_init=fan_out_normal,
            no_weight_decay_parts=(".position.",),
            **kwargs,
        )


_OFFICIAL = (
    (r"^patch_embeds\.0\.proj\.", "stem.conv."),
    (r"^patch_embeds\.0\.norm\.", "stem.norm."),
    (r"^patch_embeds\.(\d+)\.proj\.", r"stages.\1.downsample.conv."),
    (r"^patch_embeds\.(\d+)\.norm\.", r"stages.\1.downsample.norm."),
    (r"^pos_block\.(\d+)\.proj\.0\.", r"stages.\1.blocks.0.position."),
    (r"^norm_list\.(\d+)\.", r"stages.\1.norm."),
    (r"^blocks\.(\d+)\.(\d+)\.norm1\.", r"stages.\1.blocks.\2.attn.norm."),
    (r"^blocks\.(\d+)\.(\d+)\.norm2\.", r"stages.\1.blocks.\2.mlp.norm."),
    (r"^blocks\.(\d+)\.(\d+)\.(attn|mlp)\.", r"stages.\1.blocks.\2.\3.fn."),
    (r"^norm\.", "final."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
)


def checkpoint_filter_fn(state_dict: StateDict, model: nn.Module) -> StateDict:
    """Maps the official format, which timm's hub holds too, to our keys; our own pass through.

    Args:
        state_dict: Flat weights, without prefixes.
        model: The network they are for.
    """
    return rename_keys(state_dict, _OFFICIAL)


_CFG = imagenet_cfg(paper_ids="arXiv:2104.13840", origin_url="https://github.com/Meituan-AutoML/Twins")
_PCPVT = {"dims": (64, 128, 320, 512), "num_heads": (1, 2, 5, 8), "mlp_ratios": (8.0, 8.0, 4.0, 4.0)}
_SVT = {"window_sizes": (7, 7, 7, 7)}

register_family(
    __name__,
    {
        f"va_twins_{kind}_{size}": Network(
            f"Twins-{kind.upper()}-{size[0].upper()}, {millions} M parameters.", Twins, arguments, _CFG
        )
        for kind, size, millions, arguments in (
            ("pcpvt", "small", 24.1, {**_PCPVT, "depths": (3, 4, 6, 3)}),
            ("pcpvt", "base", 43.8, {**_PCPVT, "depths": (3, 4, 18, 3)}),
            ("pcpvt", "large", 61.0, {**_PCPVT, "depths": (3, 8, 27, 3)}),
            ("svt", "small", 24.1, {**_SVT, **doubling(64, (2, 2, 10, 4), 2)}),
            ("svt", "base", 56.1, {**_SVT, **doubling(96, (2, 2, 18, 2), 3)}),
            ("svt", "large", 99.3, {**_SVT, **doubling(128, (2, 2, 18, 2), 4)}),
        )
    },
    checkpoint_filter_fn,
)
