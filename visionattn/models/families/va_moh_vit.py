"""MoH-ViT: TransNeXt with a mixture of heads in every attention (ICML 2025, arXiv 2410.11842).

Aggregated attention in the first three stages, cosine attention to the whole map in the last, gated convolutions as
feed-forward layers. The number in a name is the share of the heads that a token uses, in percent and
roughly.

Official code: https://github.com/SkyworkAI/MoH (Apache-2.0), MoH-ViT/transnext.py; TransNeXt is arXiv 2311.17132.

Differs from the official code in: any input size, channels-last inside. The tiny size, TransNeXt's with the heads of
the small one, is ours.

Golden: tests/golden/moh_vit_small_80_eval.npz (logits and means of the stages).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.mixers.moh import MixtureOfHeadAttention
from visionattn.mixers.moh_aggregated import MixtureOfHeadAggregatedAttention
from visionattn.utils.factory import FactoryKwargs

from ..builder import StateDict, rename_keys
from ..hosts.backbone import imagenet_cfg
from ..hosts.published import pvtv2_host
from ..hosts.pyramid import BlockContext, Pyramid
from ..layers import Block, branch_builder
from ..registry import Network, register_family

__all__ = ["MoHViT"]

_Norm = partial(nn.LayerNorm, eps=1e-6)


class _ConvGlu(nn.Module):
    """A convolutional gated linear unit, two thirds as wide as an MLP of its ratio. `(B, H, W, C) -> (B, H, W, C)`."""

    def __init__(self, dim: int, *, ratio: float, drop: float = 0.0, **dd: Any) -> None:
        super().__init__()
        given: FactoryKwargs = {"device": dd.get("device"), "dtype": dd.get("dtype")}
        hidden = int(2 * int(dim * ratio) / 3)
        self.fc1 = nn.Linear(dim, 2 * hidden, **given)
        self.conv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, **given)
        self.fc2 = nn.Linear(hidden, dim, **given)
        self.drop = nn.Dropout(drop)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, values = self.fc1(x).chunk(2, dim=-1)
        gate = self.conv(gate.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.drop(self.fc2(self.drop(F.gelu(gate) * values)))


class MoHViT(Pyramid):
    """TransNeXt with mixtures of heads. `(B, in_chans, H, W) -> (B, num_classes)`.

    In training each layer that routes reports a loss `balance` (`visionattn.ops.losses`).

    Args:
        dims: Width of each stage.
        depths: Blocks of each stage.
        num_heads: Heads of each stage.
        shared_heads: Heads that serve every token, of each stage; by default a quarter.
        routed_heads: Further heads that serve each token, of each stage; by default half of `num_heads`.
        mlp_ratios: Hidden width over the width of the MLPs that the gated units are as large as, of each stage.
        sr_ratios: By how much the pooled map is smaller, of each stage; 1 attends to the whole map instead.
        window_size: Side of the neighbourhood in the stages with a pooled map, odd.
        balance_weight: Factor of the loss of balance.
        patch_stride: Step of the stem: 4, or less for small pictures.
        **kwargs: As `Pyramid`: img_size (its distances are the unit of positions), in_chans, num_classes, global_pool,
            the drop rates, device, dtype.

    Raises:
        ValueError: If what belongs to the stages is not one number for each, or there are not so many heads.
    """

    def __init__(
        self,
        dims: Sequence[int],
        depths: Sequence[int],
        num_heads: Sequence[int],
        *,
        shared_heads: Sequence[int] | None = None,
        routed_heads: Sequence[int] | None = None,
        mlp_ratios: Sequence[float] = (8.0, 8.0, 4.0, 4.0),
        sr_ratios: Sequence[int] = (8, 4, 2, 1),
        window_size: int = 3,
        balance_weight: float = 0.01,
        patch_stride: int = 4,
        **kwargs: Any,
    ) -> None:
        for name, given in (
            ("shared_heads", shared_heads),
            ("routed_heads", routed_heads),
            ("mlp_ratios", mlp_ratios),
            ("sr_ratios", sr_ratios),
        ):
            if given is not None and len(given) != len(depths):
                raise ValueError(f"{name} must hold one number for each of {len(depths)} stages, got {tuple(given)}")

        def block(context: BlockContext, **dd: Any) -> nn.Module:
            stage, dim = context.stage, context.dim
            arguments: dict[str, Any] = {
                "shared_heads": None if shared_heads is None else shared_heads[stage],
                "routed_heads": None if routed_heads is None else routed_heads[stage],
                "grid_size": context.grid,
                "balance_weight": balance_weight,
                **context.keywords,
                **dd,
            }
            if sr_ratios[stage] > 1:
                mixer: nn.Module = MixtureOfHeadAggregatedAttention(
                    dim, sr_ratio=sr_ratios[stage], window_size=window_size, **arguments
                )
            else:
                mixer = MixtureOfHeadAttention(dim, cosine=True, **arguments)
            branch = branch_builder(context, norm=_Norm, **dd)
            mlp = _ConvGlu(dim, ratio=mlp_ratios[stage], drop=context.proj_drop, **dd)
            return Block(attn=branch(mixer), mlp=branch(mlp))

        super().__init__(
            dims,
            depths,
            num_heads,
            block=block,
            no_weight_decay_parts=(
                ".temperature",
                ".query_embedding",
                ".relative_pos_bias_local",
                ".learnable_tokens",
                ".learnable_bias",
                ".cpb_fc",
            ),
            **pvtv2_host(patch_stride),
            **kwargs,
        )


_OFFICIAL = (
    (r"^patch_embed1\.proj\.", "stem.conv."),
    (r"^patch_embed1\.norm\.", "stem.norm."),
    (r"^patch_embed(\d)\.proj\.", lambda m: f"stages.{int(m[1]) - 1}.downsample.conv."),
    (r"^patch_embed(\d)\.norm\.", lambda m: f"stages.{int(m[1]) - 1}.downsample.norm."),
    (r"^block(\d)\.(\d+)\.norm1\.", lambda m: f"stages.{int(m[1]) - 1}.blocks.{m[2]}.attn.norm."),
    (r"^block(\d)\.(\d+)\.norm2\.", lambda m: f"stages.{int(m[1]) - 1}.blocks.{m[2]}.mlp.norm."),
    (r"^block(\d)\.(\d+)\.mlp\.dwconv\.dwconv\.", lambda m: f"stages.{int(m[1]) - 1}.blocks.{m[2]}.mlp.fn.conv."),
    (r"^block(\d)\.(\d+)\.(attn|mlp)\.", lambda m: f"stages.{int(m[1]) - 1}.blocks.{m[2]}.{m[3]}.fn."),
    (r"^norm(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.norm."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
)
# Tables of one image size.
_TABLES = ("relative_pos_index", "relative_coords_table", "local_seq_length", "padding_mask", "seq_length_scale")


def checkpoint_filter_fn(state_dict: StateDict, model: nn.Module) -> StateDict:
    """Maps the official format to our keys; our own pass through.

    Args:
        state_dict: Flat weights, without prefixes.
        model: The network they are for.
    """
    return {k: v for k, v in rename_keys(state_dict, _OFFICIAL).items() if not k.endswith(_TABLES)}


_CFG = imagenet_cfg(paper_ids="arXiv:2410.11842", origin_url="https://github.com/SkyworkAI/MoH")
_SMALL = {"dims": (72, 144, 288, 576), "num_heads": (3, 6, 12, 24), "routed_heads": (0, 0, 6, 12)}
_BASE = {"dims": (96, 192, 384, 768), "num_heads": (4, 8, 16, 32), "depths": (5, 5, 23, 5)}
_SHARED_80, _SHARED_75 = (3, 6, 3, 8), (3, 6, 3, 4)

register_family(
    __name__,
    {
        f"va_moh_vit_{size}_{share}": Network(
            f"MoH-ViT-{size[0].upper()}, {share} % of the heads, {millions} M parameters.", MoHViT, arguments, _CFG
        )
        for size, share, millions, arguments in (
            ("tiny", 80, 28.4, {**_SMALL, "depths": (2, 2, 15, 2), "shared_heads": _SHARED_80}),
            ("tiny", 75, 28.4, {**_SMALL, "depths": (2, 2, 15, 2), "shared_heads": _SHARED_75}),
            ("small", 80, 49.9, {**_SMALL, "depths": (5, 5, 22, 5), "shared_heads": _SHARED_80}),
            ("small", 75, 49.9, {**_SMALL, "depths": (5, 5, 22, 5), "shared_heads": _SHARED_75}),
            ("base", 75, 90.0, {**_BASE, "shared_heads": (4, 8, 4, 5), "routed_heads": (0, 0, 8, 16)}),
            ("base", 50, 90.0, {**_BASE, "shared_heads": (2, 2, 2, 4), "routed_heads": (2, 4, 6, 8)}),
        )
    },
    checkpoint_filter_fn,
)
