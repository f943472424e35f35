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

from visionattn.mixers import GlobalSubsampledAttention, LocallyGroupedAttention

from ..builder import StateDict, family_cfgs, register_network, rename_keys
from ..hosts.pyramid import BlockContext, Pyramid, fan_out_normal, imagenet_cfg
from ..layers import Mlp, PatchConv, PositionConv, ResidualBranch, named_sequential

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
        edge: What becomes of rows and columns that fill no patch of the summary: `crop` (left out, as published) or
            `pad`.
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
        edge: str = "crop",
        stage_norm: bool = False,
        patch_size: int = 4,
        **kwargs: Any,
    ) -> None:
        def block(place: BlockContext, **dd: Any) -> nn.Module:
            stage, dim = place.stage, place.dim
            drops = {"attn_drop": place.attn_drop, "proj_drop": place.proj_drop}
            if window_sizes is not None and place.block % 2 == 0:
                mixer = LocallyGroupedAttention(
                    dim, num_heads=num_heads[stage], window_size=window_sizes[stage], pad_mask=pad_mask, **drops, **dd
                )
            else:
                mixer = GlobalSubsampledAttention(
                    dim, num_heads=num_heads[stage], sr_ratio=sr_ratios[stage], edge=edge, **drops, **dd
                )
            mlp = Mlp(dim, ratio=mlp_ratios[stage], drop=place.proj_drop, **dd)
            branch = partial(ResidualBranch, dim, norm=_Norm, drop_path=place.drop_path, **dd)
            position = {"position": PositionConv(dim, **dd)} if place.block == 0 else {}
            return named_sequential(attn=branch(mixer), mlp=branch(mlp), **position)

        super().__init__(
            dims,
            depths,
            block=block,
            stem=partial(PatchConv, kernel_size=patch_size, stride=patch_size, norm=nn.LayerNorm),
            downsample=partial(PatchConv, kernel_size=2, stride=2, norm=nn.LayerNorm),
            stage_norm=_Norm if stage_norm else None,
            final=_Norm,
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


_PCPVT = {"dims": (64, 128, 320, 512), "num_heads": (1, 2, 5, 8), "mlp_ratios": (8.0, 8.0, 4.0, 4.0)}
_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "va_twins_pcpvt_small": ("Twins-PCPVT-S, 24.1 M parameters.", {**_PCPVT, "depths": (3, 4, 6, 3)}),
    "va_twins_pcpvt_base": ("Twins-PCPVT-B, 43.8 M parameters.", {**_PCPVT, "depths": (3, 4, 18, 3)}),
    "va_twins_pcpvt_large": ("Twins-PCPVT-L, 61.0 M parameters.", {**_PCPVT, "depths": (3, 8, 27, 3)}),
    **{
        f"va_twins_svt_{size}": (
            f"Twins-SVT-{size[0].upper()}, {millions} M parameters.",
            {
                "dims": tuple(width * 2**i for i in range(4)),
                "depths": depths,
                "num_heads": tuple(heads * 2**i for i in range(4)),
                "window_sizes": (7, 7, 7, 7),
            },
        )
        for size, millions, width, heads, depths in (
            ("small", 24.1, 64, 2, (2, 2, 10, 4)),
            ("base", 56.1, 96, 3, (2, 2, 18, 2)),
            ("large", 99.3, 128, 4, (2, 2, 18, 2)),
        )
    },
}


def _cfg(name: str, **kwargs: Any) -> dict[str, Any]:
    fields = {"license": "apache-2.0", **kwargs}
    return imagenet_cfg(paper_ids="arXiv:2104.13840", origin_url="https://github.com/Meituan-AutoML/Twins", **fields)


default_cfgs = family_cfgs(_MODELS, _cfg)

for _name, (_doc, _arguments) in _MODELS.items():
    register_network(
        __name__,
        _name,
        _doc,
        Twins,
        to_native=checkpoint_filter_fn,
        feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
        **_arguments,
    )
