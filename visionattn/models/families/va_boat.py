"""BOAT: Bilateral Local Attention Vision Transformer (BMVC 2022, arXiv 2201.13027).

Attention to neighbours in the picture and to neighbours in feature space, on Swin and on CSwin.

Official code: https://github.com/mahaoyuHKU/pytorch-boat (MIT headers), boat_swin and boat_cswin.

Differs from the official code in: any input size (there, square maps of 49 times a power of two positions); images of
a batch never see each other. The published BOAT-CSwin was trained with clusters paired across the batch in its last
stage: `legacy=True` reproduces it, for batches of even size. Channels-last inside.

Golden: tests/golden/boat_*.npz (logits and means of the stages), in double precision: in float32 rounding alone moves
some position into another cluster, in the official code as well, and the logits by some percent.

ONNX: `torch.onnx.export(..., optimize=False)`. Clustering makes graphs of more than ten thousand nodes, which PyTorch's
exporter takes many minutes to optimise; runtimes do so themselves.
"""

from collections.abc import Sequence
from typing import Any

from torch import nn

from visionattn.mixers.boat import FeatureSpaceLocalAttention
from visionattn.mixers.cswin import CrossShapedWindowAttention
from visionattn.mixers.window import WindowAttention

from ..builder import StateDict, rename_keys
from ..hosts.backbone import imagenet_cfg
from ..hosts.published import OFFICIAL_KEYS, cswin_host, doubling, swin_host
from ..hosts.pyramid import BlockContext, Pyramid
from ..layers import Block, Mlp, ResidualBranch, branch_builder
from ..registry import Network, register_family

__all__ = ["BOATCSwin", "BOATSwin"]


class BOATSwin(Pyramid):
    """Swin with feature-space local attention in its shifted blocks. `(B, in_chans, H, W) -> (B, num_classes)`.

    The last stage has none, as published: at 224 px its map is one window.

    Args:
        dims: Width of each stage.
        depths: Blocks of each stage.
        num_heads: Heads of each stage.
        window_size: Side of the windows.
        cluster_size: Positions of a cluster.
        overlap: Positions of the sibling cluster that a cluster sees too.
        patch_size: Side of the stem's patches: 4, or less for small pictures.
        **kwargs: As `Pyramid`: in_chans, num_classes, global_pool, the drop rates, device, dtype.
    """

    def __init__(
        self,
        dims: Sequence[int],
        depths: Sequence[int],
        num_heads: Sequence[int],
        *,
        window_size: int = 7,
        cluster_size: int = 49,
        overlap: int = 20,
        patch_size: int = 4,
        **kwargs: Any,
    ) -> None:
        def block(context: BlockContext, **dd: Any) -> nn.Module:
            dim, shifted, given = context.dim, context.block % 2 == 1, {**context.keywords, **dd}
            branch = branch_builder(context, **dd)
            shift = window_size // 2 if shifted else 0
            parts = {"attn": branch(WindowAttention(dim, window_size=window_size, shift_size=shift, **given))}
            if shifted and context.stage < len(dims) - 1:
                mixer = FeatureSpaceLocalAttention(dim, cluster_size=cluster_size, overlap=overlap, **given)
                parts["content"] = ResidualBranch(dim, mixer, **dd)  # officially without stochastic depth
            return Block(**parts, mlp=branch(Mlp(dim, drop=context.proj_drop, **dd)))

        super().__init__(dims, depths, num_heads, block=block, **swin_host(patch_size), **kwargs)


class BOATCSwin(Pyramid):
    """CSwin with feature-space local attention in every other block. `(B, in_chans, H, W) -> (B, num_classes)`.

    Args:
        dims: Width of each stage.
        depths: Blocks of each stage.
        num_heads: Heads of each stage.
        split_sizes: Breadth of the stripes of each stage; the last stage attends to the whole map.
        cluster_size: Positions of a cluster.
        overlap: Positions of the sibling cluster that a cluster sees too.
        legacy: Pair clusters across the batch where there is one only, as the published weights were trained.
        patch_stride: Step of the stem: 4, or less for small pictures.
        **kwargs: As `Pyramid`: in_chans, num_classes, global_pool, the drop rates, device, dtype.
    """

    def __init__(
        self,
        dims: Sequence[int],
        depths: Sequence[int],
        num_heads: Sequence[int],
        *,
        split_sizes: Sequence[int] = (1, 2, 7, 7),
        cluster_size: int = 49,
        overlap: int = 20,
        legacy: bool = False,
        patch_stride: int = 4,
        **kwargs: Any,
    ) -> None:
        def block(context: BlockContext, **dd: Any) -> nn.Module:
            dim, given = context.dim, {**context.keywords, **dd}
            branch = branch_builder(context, **dd)
            split, full = split_sizes[context.stage], context.stage == len(dims) - 1
            parts = {"attn": branch(CrossShapedWindowAttention(dim, split_size=split, full=full, **given))}
            if context.block % 2 == 0:
                # The official code hands a flag over where the scale is expected: logits are not scaled.
                sizes: dict[str, Any] = {"cluster_size": cluster_size, "overlap": overlap}
                parts["content"] = branch(FeatureSpaceLocalAttention(dim, **sizes, scale=1.0, legacy=legacy, **given))
            return Block(**parts, mlp=branch(Mlp(dim, drop=context.proj_drop, **dd)))

        super().__init__(dims, depths, num_heads, block=block, **cswin_host(patch_stride), **kwargs)


_OFFICIAL = (
    *OFFICIAL_KEYS,
    (r"(blocks\.\d+)\.(?:attnC|content_attn)\.", r"\1.content.fn."),
    (r"(blocks\.\d+)\.norm[34]\.", r"\1.content.norm."),
)


def checkpoint_filter_fn(state_dict: StateDict, model: nn.Module) -> StateDict:
    """Maps the official formats to our keys; our own pass through.

    Args:
        state_dict: Flat weights, without prefixes.
        model: The network they are for.
    """
    kept = {k: v for k, v in state_dict.items() if not k.endswith(("relative_position_index", "attn_mask"))}
    return rename_keys(kept, _OFFICIAL)


_CFG = imagenet_cfg(paper_ids="arXiv:2201.13027", origin_url="https://github.com/mahaoyuHKU/pytorch-boat")

register_family(
    __name__,
    {
        f"va_boat_{host.lower()}_{size}": Network(
            f"BOAT-{host}-{size[0].upper()}, {millions} M parameters.", cls, doubling(width, depths, heads), _CFG
        )
        for host, cls, size, millions, width, depths, heads in (
            ("Swin", BOATSwin, "tiny", 30.3, 96, (2, 2, 6, 2), 3),
            ("Swin", BOATSwin, "small", 55.2, 96, (2, 2, 18, 2), 3),
            ("Swin", BOATSwin, "base", 97.6, 128, (2, 2, 18, 2), 4),
            ("CSwin", BOATCSwin, "tiny", 26.4, 64, (1, 2, 21, 1), 2),
            ("CSwin", BOATCSwin, "small", 40.1, 64, (2, 4, 32, 2), 2),
            ("CSwin", BOATCSwin, "base", 89.6, 96, (2, 4, 32, 2), 4),
        )
    },
    checkpoint_filter_fn,
)
