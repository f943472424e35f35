"""MANO: multipole attention in Swin's layout (ICCV workshop 2025, arXiv 2507.02748).

Each block attends in windows of its map and of ever coarser copies of it with the same weights. The widths and depths
are those that are stated for the paper's classifier, Swin-T's; the larger sizes are Swin's.

Official code: https://github.com/AlexColagrande/MANO. Its classifier could not be read: the blocks are those of its
module for fields, `x + attention(x)` with the norms inside and then an MLP, and no parity of whole networks is claimed.

Differs from the official code in: any input size; the levels follow from the nominal size of the picture.

Golden: none of whole networks; tests/golden/mano_multipole_*.npz cover the attention.
"""

from collections.abc import Sequence
from typing import Any

from torch import nn

from visionattn.mixers.mano import MultipoleAttention, fitting_levels

from ..builder import StateDict
from ..hosts.backbone import imagenet_cfg
from ..hosts.published import doubling, swin_host
from ..hosts.pyramid import BlockContext, Pyramid
from ..layers import Block, Mlp, branch_builder
from ..registry import Network, register_family

__all__ = ["MANO"]


def _no_norm(dim: int, **dd: Any) -> nn.Identity:
    """No norm: the attention has its own norms."""
    return nn.Identity()


class MANO(Pyramid):
    """Multipole attention in stages. `(B, in_chans, H, W) -> (B, num_classes)`.

    Args:
        dims: Width of each stage.
        depths: Blocks of each stage.
        num_heads: Heads of each stage.
        window_size: Side of the windows.
        levels: Levels of each stage; none for as many as the map has at the nominal size of the picture.
        down: As in `MultipoleAttention`.
        up: Likewise.
        mlp_ratio: Hidden width of the MLPs over the width.
        patch_size: Side of the stem's patches: 4, or less for small pictures.
        **kwargs: As `Pyramid`: img_size, in_chans, num_classes, global_pool, the drop rates, device, dtype.

    Raises:
        ValueError: If an argument is out of range, or there is not one number of levels for each stage.
    """

    def __init__(
        self,
        dims: Sequence[int],
        depths: Sequence[int],
        num_heads: Sequence[int],
        *,
        window_size: int = 7,
        levels: Sequence[int] | None = None,
        down: str = "conv",
        up: str = "conv",
        mlp_ratio: float = 4.0,
        patch_size: int = 4,
        **kwargs: Any,
    ) -> None:
        if levels is not None and len(levels) != len(dims):
            raise ValueError(f"levels must hold one number for each of {len(dims)} stages, got {tuple(levels)}")

        def block(context: BlockContext, **dd: Any) -> nn.Module:
            assert context.grid is not None
            count = levels[context.stage] if levels else fitting_levels(min(context.grid), window_size)
            mixer = MultipoleAttention(
                context.dim, window_size=window_size, levels=count, down=down, up=up, **context.keywords, **dd
            )
            mlp = Mlp(context.dim, ratio=mlp_ratio, drop=context.proj_drop, **dd)
            return Block(
                attn=branch_builder(context, norm=_no_norm, **dd)(mixer), mlp=branch_builder(context, **dd)(mlp)
            )

        super().__init__(dims, depths, num_heads, block=block, **swin_host(patch_size), **kwargs)


def checkpoint_filter_fn(state_dict: StateDict, model: nn.Module) -> StateDict:
    """Passes our own keys through; there is no other format.

    Args:
        state_dict: Flat weights, without prefixes.
        model: The network they are for.
    """
    return state_dict


register_family(
    __name__,
    {
        f"va_mano_{size}": Network(
            f"Multipole attention in the layout of Swin-{size[0].upper()}.",
            MANO,
            doubling(width, depths, heads),
            imagenet_cfg(paper_ids="arXiv:2507.02748", origin_url="https://github.com/AlexColagrande/MANO"),
        )
        for size, width, depths, heads in (
            ("tiny", 96, (2, 2, 6, 2), 3),
            ("small", 96, (2, 2, 18, 2), 3),
            ("base", 128, (2, 2, 18, 2), 4),
        )
    },
    checkpoint_filter_fn,
)
