"""Vision transformers with Large Kernel Convolutional Attention in the place of attention (arXiv 2401.05738).

Neither the full text nor the authors' code was to be had: widths, depths, pooling and the absence of a class token and
of a position embedding (the kernel's zero padding tells positions) are our choice, and no parity is claimed. What the
mixer leaves open is said in visionattn/mixers/lkca.py.

Differs from the official code in: not known.

Golden: of the mixer only.
"""

from functools import partial
from typing import Any

from timm.layers import to_2tuple
from torch import nn

from visionattn.mixers import LargeKernelConvAttention

from ..builder import StateDict, family_cfgs, register_network
from ..hosts.pyramid import BlockContext, Pyramid, imagenet_cfg
from ..layers import Mlp, PatchConv, ResidualBranch, named_sequential

__all__ = ["LKCAViT"]

_Norm = partial(nn.LayerNorm, eps=1e-6)


class LKCAViT(Pyramid):
    """A columnar transformer, positions mixed by large kernels. `(B, in_chans, H, W) -> (B, num_classes)`.

    Args:
        dim: Width.
        depth: Number of blocks, each of which can be read as a feature map.
        num_heads: Kernels, with `groups='heads'`.
        groups: Who has a kernel: `shared`, `heads` or `channels`.
        patch_size: Side of the patches.
        img_size: Nominal side of the picture, or height and width: kernels reach across it.
        **kwargs: As `Pyramid`: in_chans, num_classes, global_pool, the drop rates, device, dtype.
    """

    def __init__(
        self,
        dim: int,
        depth: int = 12,
        num_heads: int = 3,
        *,
        groups: str = "heads",
        patch_size: int = 16,
        img_size: int | tuple[int, int] = 224,
        **kwargs: Any,
    ) -> None:
        grid = tuple(-(-side // patch_size) for side in to_2tuple(img_size))

        def block(place: BlockContext, **dd: Any) -> nn.Module:
            branch = partial(ResidualBranch, dim, norm=_Norm, drop_path=place.drop_path, **dd)
            mixer = LargeKernelConvAttention(
                dim, grid_size=grid, groups=groups, num_heads=num_heads, proj_drop=place.proj_drop, **dd
            )
            return named_sequential(attn=branch(mixer), mlp=branch(Mlp(dim, drop=place.proj_drop, **dd)))

        super().__init__(
            [dim] * depth,
            [1] * depth,
            block=block,
            stem=partial(PatchConv, kernel_size=patch_size, stride=patch_size, pad_to_stride=True),
            final=_Norm,
            **kwargs,
        )


def checkpoint_filter_fn(state_dict: StateDict, model: nn.Module) -> StateDict:
    """There is no official format: our own keys pass through."""
    return state_dict


_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "va_lkca_vit_tiny": ("ViT-Ti with LKCA, 224 px.", {"dim": 192, "num_heads": 3}),
    "va_lkca_vit_small": ("ViT-S with LKCA, 224 px.", {"dim": 384, "num_heads": 6}),
    "va_lkca_vit_mini": (
        "A narrow ViT with LKCA for 32 px.",
        {"dim": 96, "depth": 6, "num_heads": 3, "patch_size": 4, "img_size": 32},
    ),
}


def _cfg(name: str, **kwargs: Any) -> dict[str, Any]:
    small = {"input_size": (3, 32, 32), "pool_size": (8, 8), "num_classes": 10, "crop_pct": 1.0}
    fields = {"license": "apache-2.0", "pool_size": (14, 14), **(small if "mini" in name else {}), **kwargs}
    return imagenet_cfg(paper_ids="arXiv:2401.05738", origin_url="https://github.com/CatworldLee/LKCA", **fields)


default_cfgs = family_cfgs(_MODELS, _cfg)

for _name, (_doc, _arguments) in _MODELS.items():
    depth = _arguments.get("depth", 12)
    register_network(
        __name__,
        _name,
        _doc,
        LKCAViT,
        to_native=checkpoint_filter_fn,
        # The blocks at the quarters of the depth.
        feature_cfg={
            "out_indices": tuple(depth * quarter // 4 - 1 for quarter in (1, 2, 3, 4)),
            "feature_cls": "getter",
        },
        **_arguments,
    )
