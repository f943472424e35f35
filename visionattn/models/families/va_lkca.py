"""Vision transformers with Large Kernel Convolutional Attention instead of self-attention (arXiv 2401.05738).

Neither the full text nor the authors' code was to be had: widths, depths, pooling and the absence of a class token and
of a position embedding (the kernel's zero padding tells positions) are our choice, and no parity is claimed. What the
mixer leaves open is said in visionattn/mixers/lkca.py.

Differs from the official code in: not known.

Golden: of the mixer only.
"""

from typing import Any

from torch import nn

from visionattn.mixers.lkca import LargeKernelConvAttention

from ..builder import StateDict, rename_keys
from ..hosts.backbone import imagenet_cfg
from ..hosts.columnar import STAGED_KEYS, BlockContext, Columnar, quarters
from ..registry import Network, register_family

__all__ = ["lkca_vit"]


def lkca_vit(*args: Any, groups: str = "heads", **kwargs: Any) -> Columnar:
    """A columnar transformer with large-kernel mixing. `(B, in_chans, H, W) -> (B, num_classes)`.

    Args:
        *args: As `Columnar`: dim, depth, num_heads (the number of kernels, with `groups='heads'`).
        groups: Who has a kernel: `shared`, `heads` or `channels`.
        **kwargs: As `Columnar`; kernels reach across a picture of `img_size`.
    """

    def mixers(context: BlockContext, **dd: Any) -> dict[str, nn.Module]:
        given: dict[str, Any] = {"grid_size": context.grid, "num_heads": context.num_heads, **dd}
        return {"attn": LargeKernelConvAttention(context.dim, groups=groups, proj_drop=context.proj_drop, **given)}

    return Columnar(*args, mixers=mixers, position=False, **kwargs)


def checkpoint_filter_fn(state_dict: StateDict, model: nn.Module) -> StateDict:
    """Maps our own keys of any release to those of the network; there is no official format."""
    return rename_keys(state_dict, STAGED_KEYS)


_CODE = {"paper_ids": "arXiv:2401.05738", "origin_url": "https://github.com/CatworldLee/LKCA"}
_CFG = imagenet_cfg(**_CODE, pool_size=(14, 14))
_SMALL_CFG = imagenet_cfg(**_CODE, input_size=(3, 32, 32), pool_size=(8, 8), num_classes=10, crop_pct=1.0)

register_family(
    __name__,
    {
        f"va_lkca_vit_{size}": Network(doc, lkca_vit, arguments, cfg, quarters)
        for size, doc, arguments, cfg in (
            ("tiny", "ViT-Ti with LKCA, 224 px.", {"dim": 192, "num_heads": 3}, _CFG),
            ("small", "ViT-S with LKCA, 224 px.", {"dim": 384, "num_heads": 6}, _CFG),
            (
                "mini",
                "A narrow ViT with LKCA for 32 px.",
                {"dim": 96, "depth": 6, "num_heads": 3, "patch_size": 4, "img_size": 32},
                _SMALL_CFG,
            ),
        )
    },
    checkpoint_filter_fn,
)
