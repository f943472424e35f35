"""BiFormer: vision transformers with bi-level routing attention (CVPR 2023, arXiv 2303.08810).

Three stages of bi-level routing attention with ever more regions a query, then one of full attention with a depthwise
convolution beside it; the networks tiny, small and base have overlapping convolutions between the stages and one for
positions in each block, the network `stl` has the layout of Swin-T.

Official code: https://github.com/rayleizhu/BiFormer (MIT), models/biformer.py, biformer_stl.py,
biformer_stl_nchw.py.

Differs from the official code in: maps of any size are padded; resetting the classifier works; the convolution block
(code 0 of `topk`), which no published network has, is left out; channels-last inside.

Golden: tests/golden/biformer_*.npz (logits and means of the stages, a block).
"""

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import nn

from visionattn.mixers.biformer import BiLevelRoutingAttention, LePEAttention
from visionattn.mixers.softmax import SoftmaxAttention
from visionattn.utils.arguments import check_choice

from ..builder import StateDict, rename_keys
from ..hosts.backbone import imagenet_cfg
from ..hosts.published import doubling
from ..hosts.pyramid import BlockContext, Pyramid
from ..layers import BatchNorm, Block, Mlp, PatchConv, PositionConv, branch_builder
from ..registry import Network, register_family

__all__ = ["BiFormer"]

# Codes of `topk` for stages of full attention.
_SOFTMAX, _LEPE = -1, -2


def _stem(in_chans: int, dim: int, strides: tuple[int, int], **dd: Any) -> nn.Sequential:
    conv: Callable[..., nn.Module] = partial(PatchConv, kernel_size=3, padding=1, norm=BatchNorm, **dd)
    return nn.Sequential(conv(in_chans, dim // 2, stride=strides[0]), nn.GELU(), conv(dim // 2, dim, stride=strides[1]))


class BiFormer(Pyramid):
    """Bi-level routing attention in stages. `(B, in_chans, H, W) -> (B, num_classes)`.

    Args:
        dims: Width of each stage.
        depths: Blocks of each stage.
        num_heads: Heads of each stage of bi-level routing attention.
        topk: For each stage, how many regions a region sees, or -1 for plain softmax attention, or -2 for such with a
            convolution beside it. Both have eight heads and no bias of queries, keys and values.
        n_win: Regions along each side of the map; 7 for 224 px; the authors took 8 for crops of 512 px, 16 to
            detect.
        form: As in `BiLevelRoutingAttention`. `nchw` also convolves the values instead of the input in stages of -2.
        mlp_ratio: Hidden width of the MLPs over the width.
        lepe: Side of the convolutions beside the attention.
        layout: `overlapping` convolutions between stages and one for positions in each block, or `swin`: patches of 4
            and 2 and no such convolution.
        stem_stride: Step of the stem: 4, or 2 for small pictures.
        **kwargs: As `Pyramid`: in_chans, num_classes, global_pool, the drop rates, device, dtype.

    Raises:
        ValueError: If an argument is out of range, or there is not one number of `topk` for each stage.
    """

    def __init__(
        self,
        dims: Sequence[int],
        depths: Sequence[int],
        num_heads: Sequence[int],
        *,
        topk: Sequence[int] = (1, 4, 16, -2),
        n_win: int = 7,
        form: str = "legacy",
        mlp_ratio: float = 3.0,
        lepe: int = 5,
        layout: str = "overlapping",
        stem_stride: int = 4,
        **kwargs: Any,
    ) -> None:
        check_choice("layout", layout, ("overlapping", "swin"))
        check_choice("form", form, ("legacy", "nchw"))
        check_choice("stem_stride", stem_stride, (2, 4))
        if len(topk) != len(dims):
            raise ValueError(f"topk must hold one number for each of {len(dims)} stages, got {tuple(topk)}")
        overlapping = layout == "overlapping"

        def block(context: BlockContext, **dd: Any) -> nn.Module:
            dim, regions = context.dim, topk[context.stage]
            branch = branch_builder(context, norm=partial(nn.LayerNorm, eps=1e-6), **dd)
            # The official code forgets to hand the number of heads over.
            given: dict[str, Any] = {**context.keywords, "num_heads": 8, "qkv_bias": False, **dd}
            if regions == _SOFTMAX:
                mixer: nn.Module = SoftmaxAttention(dim, **given)
            elif regions == _LEPE:
                mixer = LePEAttention(dim, lepe=lepe, lepe_on="values" if form == "nchw" else "input", **given)
            else:
                mixer = BiLevelRoutingAttention(
                    dim, n_win=n_win, topk=regions, lepe=lepe, form=form, **context.keywords, **dd
                )
            position = {"position": PositionConv(dim, **dd)} if overlapping else {}
            return Block(
                **position, attn=branch(mixer), mlp=branch(Mlp(dim, ratio=mlp_ratio, drop=context.proj_drop, **dd))
            )

        if overlapping:
            parts: dict[str, Any] = {
                "stem": partial(_stem, strides=(stem_stride // 2, 2)),
                "downsample": partial(PatchConv, kernel_size=3, stride=2, padding=1, norm=BatchNorm),
            }
        else:
            patches = partial(PatchConv, pad_to_stride=True)
            parts = {
                "stem": partial(patches, kernel_size=stem_stride, stride=stem_stride, norm=BatchNorm),
                "downsample": partial(patches, kernel_size=2, stride=2, norm_first=BatchNorm),
            }
        super().__init__(dims, depths, num_heads, block=block, final_norm=BatchNorm, **parts, **kwargs)


_Patterns = tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]
_COMMON: _Patterns = (
    (r"^norm\.", "final."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
    (r"^stages\.(\d+)\.(?:blocks\.)?(\d+)\.", r"stages.\1.blocks.\2."),
    (r"(blocks\.\d+)\.pos_embed\.", r"\1.position."),
    (r"(blocks\.\d+)\.norm1\.", r"\1.attn.norm."),
    (r"(blocks\.\d+)\.norm2\.", r"\1.mlp.norm."),
    (r"(blocks\.\d+)\.mlp\.0\.", r"\1.mlp.fn.fc1."),
    (r"(blocks\.\d+)\.mlp\.[23]\.", r"\1.mlp.fn.fc2."),
    (r"(blocks\.\d+)\.attn\.(?!fn\.|norm\.)", r"\1.attn.fn."),
)
_OVERLAPPING: _Patterns = (
    (r"^downsample_layers\.0\.(\d)\.", lambda m: f"stem.{int(m[1]) // 3 * 2}.{'norm' if int(m[1]) % 3 else 'conv'}."),
    (r"^downsample_layers\.(\d+)\.0\.", r"stages.\1.downsample.conv."),
    (r"^downsample_layers\.(\d+)\.1\.", r"stages.\1.downsample.norm."),
)
_SWIN: _Patterns = (
    (r"^downsample_layers\.0\.0\.", "stem.conv."),
    (r"^downsample_layers\.0\.1\.", "stem.norm."),
    (r"^downsample_layers\.(\d+)\.0\.", r"stages.\1.downsample.norm_first."),
    (r"^downsample_layers\.(\d+)\.1\.", r"stages.\1.downsample.conv."),
)


def checkpoint_filter_fn(state_dict: StateDict, model: nn.Module) -> StateDict:
    """Maps the official formats to our keys and shapes; our own pass through.

    Args:
        state_dict: Flat weights, without prefixes.
        model: The network they are for.
    """
    if "downsample_layers.0.0.weight" not in state_dict:
        return state_dict
    overlapping = "downsample_layers.0.3.weight" in state_dict
    native: StateDict = rename_keys(state_dict, (*(_OVERLAPPING if overlapping else _SWIN), *_COMMON))
    for prefix in sorted({key.partition(".attn.fn.")[0] + ".attn.fn." for key in native if ".attn.fn." in key}):
        native = BiLevelRoutingAttention.to_native(native, prefix)
    # The NCHW code has pointwise convolutions for linear layers.
    linear = (".fc1.weight", ".fc2.weight", ".fn.qkv.weight", ".fn.proj.weight")
    return {k: v.flatten(1) if k.endswith(linear) and v.ndim == 4 else v for k, v in native.items()}


_SIZES: dict[str, tuple[str, int, tuple[int, ...], dict[str, Any]]] = {
    "tiny": ("13.14", 64, (2, 2, 8, 2), {}),
    "small": ("25.54", 64, (4, 4, 18, 4), {}),
    "base": ("56.80", 96, (4, 4, 18, 4), {}),
    "stl": ("28.4", 96, (2, 2, 6, 2), {"layout": "swin", "mlp_ratio": 4.0}),
}

register_family(
    __name__,
    {
        f"va_biformer_{size}": Network(
            f"BiFormer-{size.upper() if size == 'stl' else size[0].upper()}, {millions} M parameters.",
            BiFormer,
            {**doubling(width, depths, width // 32), **extra},
            imagenet_cfg(
                first_conv="stem.conv" if extra else "stem.0.conv",
                paper_ids="arXiv:2303.08810",
                origin_url="https://github.com/rayleizhu/BiFormer",
            ),
        )
        for size, (millions, width, depths, extra) in _SIZES.items()
    },
    checkpoint_filter_fn,
)
