"""RAVLT: Rank-Augmented Vision Linear Transformer (CVPR 2025, arXiv 2411.07635).

Rank-augmented linear attention in the first two stages, softmax attention with the same rotations and gates in the last
two; a convolution in front of each block and one in each feed-forward layer.

Official code: https://github.com/qhfan/RALA (no licence file; the published weights are MIT), classfication/RALA.py.

Differs from the official code in: channels-last inside; which stages are linear is one argument.

Golden: tests/golden/ravlt_t_eval.npz (logits and means of the stages).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.mixers.rala import RankAugmentedLinearAttention
from visionattn.utils.factory import FactoryKwargs

from ..builder import StateDict, rename_keys
from ..hosts.backbone import imagenet_cfg
from ..hosts.pyramid import BlockContext, Pyramid
from ..layers import BatchNorm, Block, PatchConv, PositionConv, branch_builder
from ..registry import Network, register_family

__all__ = ["RAVLT"]

_Norm = partial(nn.LayerNorm, eps=1e-6)
# Width of what the classifier sees.
_FINAL = 1024


class _ConvMlp(nn.Module):
    """Two linear layers with GELU and a residual depthwise convolution between. `(B, H, W, C) -> (B, H, W, C)`."""

    def __init__(self, dim: int, *, ratio: float, drop: float = 0.0, **dd: Any) -> None:
        super().__init__()
        given: FactoryKwargs = {"device": dd.get("device"), "dtype": dd.get("dtype")}
        hidden = int(dim * ratio)
        self.fc1 = nn.Linear(dim, hidden, **given)
        self.conv = PositionConv(hidden, **given)
        self.fc2 = nn.Linear(hidden, dim, **given)
        self.drop = nn.Dropout(drop)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(self.fc2(self.conv(self.drop(F.gelu(self.fc1(x))))))


def _stem(in_chans: int, dim: int, strides: tuple[int, int], **dd: Any) -> nn.Sequential:
    conv: Any = partial(PatchConv, kernel_size=3, padding=1, norm=BatchNorm, **dd)
    half = dim // 2
    return nn.Sequential(
        conv(in_chans, half, stride=strides[0]),
        nn.GELU(),
        conv(half, half, stride=1),
        nn.GELU(),
        conv(half, half, stride=1),
        nn.GELU(),
        conv(half, dim, stride=strides[1]),
    )


def _final(dim: int, **dd: Any) -> nn.Sequential:
    return nn.Sequential(PatchConv(dim, _FINAL, kernel_size=1, stride=1, norm=BatchNorm, **dd), nn.SiLU())


class RAVLT(Pyramid):
    """Rank-augmented linear attention, then softmax attention. `(B, in_chans, H, W) -> (B, num_classes)`.

    Args:
        dims: Width of each stage.
        depths: Blocks of each stage.
        num_heads: Heads of each stage; their width must be a multiple of 4.
        attn_type: A letter a stage: `L` linear attention, `S` softmax attention.
        layer_scales: Start of the scale of each branch, of each stage.
        mlp_ratio: Hidden width of the feed-forward layers over the width.
        stem_strides: Steps of the first and the last of the stem's four convolutions.
        **kwargs: As `Pyramid`: in_chans, num_classes, global_pool, the drop rates, device, dtype.

    Raises:
        ValueError: If `attn_type` or `layer_scales` does not say one thing for each stage.
    """

    def __init__(
        self,
        dims: Sequence[int],
        depths: Sequence[int],
        num_heads: Sequence[int],
        *,
        attn_type: str = "LLSS",
        layer_scales: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
        mlp_ratio: float = 3.5,
        stem_strides: tuple[int, int] = (2, 2),
        **kwargs: Any,
    ) -> None:
        if len(attn_type) != len(depths) or set(attn_type) - {"L", "S"}:
            raise ValueError(f"attn_type must name L or S for each of {len(depths)} stages, got {attn_type!r}")
        if len(layer_scales) != len(depths):
            raise ValueError(f"layer_scales must hold one number for each of {len(depths)} stages, got {layer_scales}")

        def block(context: BlockContext, **dd: Any) -> nn.Module:
            stage, dim = context.stage, context.dim
            branch = branch_builder(context, norm=_Norm, layer_scale=layer_scales[stage], **dd)
            mixer = RankAugmentedLinearAttention(dim, softmax=attn_type[stage] == "S", **context.keywords, **dd)
            mlp = _ConvMlp(dim, ratio=mlp_ratio, drop=context.proj_drop, **dd)
            return Block(position=PositionConv(dim, **dd), attn=branch(mixer), mlp=branch(mlp))

        super().__init__(
            dims,
            depths,
            num_heads,
            block=block,
            stem=partial(_stem, strides=stem_strides),
            downsample=partial(PatchConv, kernel_size=3, stride=2, padding=1, norm=BatchNorm),
            final_norm=_final,
            final_dim=_FINAL,
            **kwargs,
        )


_OFFICIAL = (
    (r"^patch_embed\.proj\.(0|3|6|9)\.", lambda m: f"stem.{int(m[1]) // 3 * 2}.conv."),
    (r"^patch_embed\.proj\.(1|4|7|10)\.", lambda m: f"stem.{int(m[1]) // 3 * 2}.norm."),
    (r"^layers\.(\d+)\.downsample\.reduction\.", lambda m: f"stages.{int(m[1]) + 1}.downsample.conv."),
    (r"^layers\.(\d+)\.downsample\.norm\.", lambda m: f"stages.{int(m[1]) + 1}.downsample.norm."),
    (r"^layers\.(\d+)\.blocks\.(\d+)\.attn\.", r"stages.\1.blocks.\2.attn.fn."),
    (r"^layers\.(\d+)\.blocks\.(\d+)\.ffn\.dwconv\.", r"stages.\1.blocks.\2.mlp.fn.conv."),
    (r"^layers\.(\d+)\.blocks\.(\d+)\.ffn\.", r"stages.\1.blocks.\2.mlp.fn."),
    (r"^layers\.(\d+)\.blocks\.(\d+)\.norm1\.norm\.", r"stages.\1.blocks.\2.attn.norm."),
    (r"^layers\.(\d+)\.blocks\.(\d+)\.norm2\.norm\.", r"stages.\1.blocks.\2.mlp.norm."),
    (r"^layers\.(\d+)\.blocks\.(\d+)\.gamma_1$", r"stages.\1.blocks.\2.attn.gamma"),
    (r"^layers\.(\d+)\.blocks\.(\d+)\.gamma_2$", r"stages.\1.blocks.\2.mlp.gamma"),
    (r"^layers\.(\d+)\.blocks\.(\d+)\.pos\.", r"stages.\1.blocks.\2.position."),
    (r"^proj\.", "final.0.conv."),
    (r"^norm\.", "final.0.norm."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
)


def checkpoint_filter_fn(state_dict: StateDict, model: nn.Module) -> StateDict:
    """Maps the official format to our keys and shapes; our own pass through.

    Args:
        state_dict: Flat weights, without prefixes.
        model: The network they are for.
    """
    own = model.state_dict()
    native = {}
    for key, value in rename_keys(state_dict, _OFFICIAL).items():
        if key.endswith(".RoPE.angle"):
            continue  # a table that follows from the width of a head
        # Scales and pointwise convolutions there have the shape of maps.
        flat = key in own and value.ndim == 4 and own[key].ndim < 4 and value.numel() == own[key].numel()
        native[key] = value.reshape(own[key].shape) if flat else value
    return native


_CFG = imagenet_cfg(
    paper_ids="arXiv:2411.07635",
    origin_url="https://github.com/qhfan/RALA",
    license="mit",
    first_conv="stem.0.conv",
)

register_family(
    __name__,
    {
        f"va_ravlt_{size}": Network(f"RAVLT-{size[0].upper()}, {millions} M parameters.", RAVLT, arguments, _CFG)
        for size, millions, arguments in (
            ("tiny", 14.9, {"dims": (64, 128, 256, 512), "depths": (2, 2, 6, 2), "num_heads": (1, 2, 4, 8)}),
            ("small", 25.6, {"dims": (64, 128, 320, 512), "depths": (3, 5, 9, 3), "num_heads": (1, 2, 5, 8)}),
            (
                "base",
                48.2,
                {
                    "dims": (96, 192, 384, 512),
                    "depths": (4, 6, 12, 6),
                    "num_heads": (1, 2, 6, 8),
                    "layer_scales": (1.0, 1.0, 1e-6, 1e-6),
                },
            ),
            (
                "large",
                95.2,
                {
                    "dims": (96, 192, 448, 640),
                    "depths": (4, 7, 19, 8),
                    "num_heads": (1, 2, 7, 10),
                    "layer_scales": (1e-6,) * 4,
                },
            ),
        )
    },
    checkpoint_filter_fn,
)
