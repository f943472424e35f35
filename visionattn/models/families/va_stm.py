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
from functools import partial
from typing import Any

from torch import nn

from visionattn.catalog import BlockContext, Card, cards, get

from ..builder import StateDict, rename_keys
from ..hosts.backbone import imagenet_cfg, narrow_normal
from ..hosts.pyramid import Pyramid
from ..layers import BatchNorm, Block, Mlp, PatchConv, branch_builder
from ..registry import Network, register_family

__all__ = ["STM"]

_Norm = partial(nn.LayerNorm, eps=1e-6)


def _stem(in_chans: int, dim: int, strides: tuple[int, int], **dd: Any) -> nn.Sequential:
    conv: Callable[..., nn.Module] = partial(PatchConv, kernel_size=3, padding=1, norm=_Norm, **dd)
    return nn.Sequential(conv(in_chans, dim // 2, stride=strides[0]), nn.GELU(), conv(dim // 2, dim, stride=strides[1]))


def _final(dim: int, **dd: Any) -> nn.Sequential:
    return nn.Sequential(
        PatchConv(dim, dim * 3 // 2, kernel_size=1, stride=1, bias=False, norm=BatchNorm, **dd), nn.GELU()
    )


class STM(Pyramid):
    """The common architecture with one mechanism. `(B, in_chans, H, W) -> (B, num_classes)`.

    Args:
        mixer: Name of a mixer's card, or a card.
        dims: Width of each stage.
        depths: Blocks of each stage.
        num_heads: Heads of each stage.
        mlp_ratios: Hidden width of the MLPs over the width, of each stage.
        stem_strides: Steps of the stem's two convolutions.
        layer_scale: Start of the scale of each branch.
        **kwargs: As `Pyramid`: img_size (what belongs to positions is learnt for it), in_chans, num_classes,
            global_pool, the drop rates, device, dtype.

    Raises:
        ValueError: If there is no such mixer.
    """

    def __init__(
        self,
        mixer: str | Card,
        dims: Sequence[int],
        depths: Sequence[int],
        num_heads: Sequence[int],
        mlp_ratios: Sequence[float] = (4.0, 4.0, 4.0, 4.0),
        *,
        stem_strides: tuple[int, int] = (2, 2),
        layer_scale: float = 1e-6,
        **kwargs: Any,
    ) -> None:
        card = get("mixer", mixer) if isinstance(mixer, str) else mixer
        norm = partial(nn.LayerNorm, eps=card.block_norm_eps)

        def block(context: BlockContext, **dd: Any) -> nn.Module:
            branch = branch_builder(context, norm=norm, layer_scale=layer_scale, **dd)
            position = card.build_position(context, **dd)
            mlp = Mlp(context.dim, ratio=mlp_ratios[context.stage], drop=context.proj_drop, **dd)
            return Block(
                **({} if position is None else {"position": position}),
                **{name: branch(built) for name, built in card.build_mixers(context, **dd).items()},
                mlp=branch(mlp),
            )

        super().__init__(
            dims,
            depths,
            num_heads,
            block=block,
            stem=partial(_stem, strides=stem_strides),
            downsample=partial(PatchConv, kernel_size=3, stride=2, padding=1, bias=False, norm=_Norm),
            stage_norm=_Norm,
            final_norm=_final,
            final_dim=dims[-1] * 3 // 2,
            conv_init=narrow_normal,
            no_weight_decay_parts=(
                ".position.",
                "relative_position_bias_table",
                ".height_rel",
                ".width_rel",
                ".embed_",
            ),
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


def _network(card: Card, size: str) -> Network:
    small = {"input_size": (3, 32, 32), "pool_size": (2, 2), "num_classes": 10, "crop_pct": 1.0}
    return Network(
        f"STM-Evaluation's unified architecture with {card.name}, size {size}.",
        STM,
        {"mixer": card.name, "dims": _DIMS[size], **_SIZES[size], **_OWN_SIZES.get((card.name, size), {})},
        imagenet_cfg(
            first_conv="stem.0.conv",
            paper_ids=["arXiv:2211.05781", card.paper],
            origin_url="https://github.com/OpenGVLab/STM-Evaluation",
            **(small if size == "nano" else {}),
        ),
    )


register_family(
    __name__,
    {f"va_stm_{card.name}_{size}": _network(card, size) for card in cards("mixer") for size in card.pyramid},
    checkpoint_filter_fn,
)
