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
from functools import partial
from typing import Any

from torch import nn

from visionattn.mixers import CrossShapedWindowAttention, FeatureSpaceLocalAttention, WindowAttention

from ..builder import StateDict, family_cfgs, register_network, rename_keys
from ..hosts.published import OFFICIAL_KEYS, cswin_host, swin_host
from ..hosts.pyramid import BlockContext, Pyramid, imagenet_cfg
from ..layers import Mlp, ResidualBranch, named_sequential

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
        def block(place: BlockContext, **dd: Any) -> nn.Module:
            dim, heads, shifted = place.dim, num_heads[place.stage], place.block % 2 == 1
            drops = {"attn_drop": place.attn_drop, "proj_drop": place.proj_drop, **dd}
            shift = window_size // 2 if shifted else 0
            parts: dict[str, nn.Module] = {
                "attn": ResidualBranch(
                    dim,
                    WindowAttention(dim, num_heads=heads, window_size=window_size, shift_size=shift, **drops),
                    drop_path=place.drop_path,
                    **dd,
                )
            }
            if shifted and place.stage < len(dims) - 1:
                mixer = FeatureSpaceLocalAttention(
                    dim, num_heads=heads, cluster_size=cluster_size, overlap=overlap, **drops
                )
                parts["content"] = ResidualBranch(dim, mixer, **dd)  # officially without stochastic depth
            mlp = Mlp(dim, ratio=4.0, drop=place.proj_drop, **dd)
            return named_sequential(**parts, mlp=ResidualBranch(dim, mlp, drop_path=place.drop_path, **dd))

        super().__init__(
            dims,
            depths,
            block=block,
            **swin_host(patch_size),
            **kwargs,
        )


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
        def block(place: BlockContext, **dd: Any) -> nn.Module:
            dim, heads = place.dim, num_heads[place.stage]
            drops = {"attn_drop": place.attn_drop, "proj_drop": place.proj_drop, **dd}
            branch = partial(ResidualBranch, dim, drop_path=place.drop_path, **dd)
            full = place.stage == len(dims) - 1
            parts = {
                "attn": branch(
                    CrossShapedWindowAttention(
                        dim, num_heads=heads, split_size=split_sizes[place.stage], full=full, **drops
                    )
                )
            }
            if place.block % 2 == 0:
                # The official code hands a flag over where the scale is expected: logits are not scaled.
                parts["content"] = branch(
                    FeatureSpaceLocalAttention(
                        dim,
                        num_heads=heads,
                        cluster_size=cluster_size,
                        overlap=overlap,
                        scale=1.0,
                        legacy=legacy,
                        **drops,
                    )
                )
            return named_sequential(**parts, mlp=branch(Mlp(dim, ratio=4.0, drop=place.proj_drop, **dd)))

        super().__init__(
            dims,
            depths,
            block=block,
            **cswin_host(patch_stride),
            **kwargs,
        )


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


def _args(width: int, depths: Sequence[int], heads: int) -> dict[str, Any]:
    widths, counts = (tuple(first * 2**i for i in range(4)) for first in (width, heads))
    return {"dims": widths, "depths": tuple(depths), "num_heads": counts}


_MODELS: dict[str, tuple[type[Pyramid], str, dict[str, Any]]] = {
    "va_boat_swin_tiny": (BOATSwin, "BOAT-Swin-T, 30.3 M parameters.", _args(96, (2, 2, 6, 2), 3)),
    "va_boat_swin_small": (BOATSwin, "BOAT-Swin-S, 55.2 M parameters.", _args(96, (2, 2, 18, 2), 3)),
    "va_boat_swin_base": (BOATSwin, "BOAT-Swin-B, 97.6 M parameters.", _args(128, (2, 2, 18, 2), 4)),
    "va_boat_cswin_tiny": (BOATCSwin, "BOAT-CSwin-T, 26.4 M parameters.", _args(64, (1, 2, 21, 1), 2)),
    "va_boat_cswin_small": (BOATCSwin, "BOAT-CSwin-S, 40.1 M parameters.", _args(64, (2, 4, 32, 2), 2)),
    "va_boat_cswin_base": (BOATCSwin, "BOAT-CSwin-B, 89.6 M parameters.", _args(96, (2, 4, 32, 2), 4)),
}


def _cfg(name: str, **kwargs: Any) -> dict[str, Any]:
    fields = {"license": "apache-2.0", **kwargs}
    return imagenet_cfg(paper_ids="arXiv:2201.13027", origin_url="https://github.com/mahaoyuHKU/pytorch-boat", **fields)


default_cfgs = family_cfgs(_MODELS, _cfg)

for _name, (_class, _doc, _arguments) in _MODELS.items():
    register_network(
        __name__,
        _name,
        _doc,
        _class,
        to_native=checkpoint_filter_fn,
        feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
        **_arguments,
    )
