"""FLatten Transformer: focused linear attention in five hosts (ICCV 2023, arXiv 2308.00442).

Official code: https://github.com/LeapLabTHU/FLatten-Transformer (no licence file), models/flatten_*.py: PVT, PVTv2,
Swin and CSwin. There is no official code of the DeiT host: `va_flatten_deit_*` have no class token and pool the mean,
and no parity is claimed for them.

Differs from the official code in: any input size (there, the encoding of positions fits one), channels-last inside. The
final norm of the official PVT, which is never applied, is dropped when its weights are loaded.

Golden: tests/golden/flatten_*_eval.npz (logits and means of the stages).
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn

from visionattn.mixers.cswin import CrossShapedWindowAttention
from visionattn.mixers.flatten import FocusedLinearAttention
from visionattn.mixers.window import WindowAttention

from ..builder import StateDict, rename_keys
from ..hosts.backbone import imagenet_cfg
from ..hosts.columnar import STAGED_KEYS, Columnar, quarters
from ..hosts.published import OFFICIAL_KEYS, cswin_host, doubling, pvt_host, pvtv2_host, swin_host
from ..hosts.pyramid import BlockContext, Pyramid
from ..layers import Block, Mlp, Norm, PositionEmbedding, branch_builder
from ..registry import Network, register_family

__all__ = ["FLatten", "flatten_deit"]

_Norm = partial(nn.LayerNorm, eps=1e-6)


@dataclass(frozen=True)
class _Host:
    """A published pyramid: its arguments of `Pyramid`, its own mixer, and its block layout."""

    arguments: Callable[[int], dict[str, Any]]
    own_mixer: Callable[..., nn.Module] | None = None
    attn_type: str = "LLLL"
    norm: Norm = _Norm
    mlp_ratios: Sequence[float] = (8.0, 8.0, 4.0, 4.0)
    mlp_conv: bool = False
    position: bool = False
    linear: dict[str, Any] = field(default_factory=dict)


def _windows(context: BlockContext, last: bool, window_size: int, split_sizes: Any, **dd: Any) -> nn.Module:
    shift = window_size // 2 if context.block % 2 else 0
    return WindowAttention(context.dim, window_size=window_size, shift_size=shift, **context.keywords, **dd)


def _stripes(context: BlockContext, last: bool, window_size: int, split_sizes: Any, **dd: Any) -> nn.Module:
    split = split_sizes[context.stage]
    return CrossShapedWindowAttention(context.dim, split_size=split, full=last, **context.keywords, **dd)


_SOFTMAX_LATE: dict[str, Any] = {"attn_type": "LLSS", "norm": nn.LayerNorm, "mlp_ratios": (4.0,) * 4}
_HOSTS = {
    "swin": _Host(swin_host, _windows, **_SOFTMAX_LATE),
    "cswin": _Host(cswin_host, _stripes, **_SOFTMAX_LATE, linear={"lepe": True}),
    "pvt": _Host(pvt_host, position=True),
    "pvtv2": _Host(pvtv2_host, mlp_conv=True),
}


class FLatten(Pyramid):
    """A published pyramid with linear attention over the whole map. `(B, in_chans, H, W) -> (B, num_classes)`.

    Args:
        dims: Width of each stage.
        depths: Blocks of each stage.
        num_heads: Heads of each stage.
        host: `swin`, `cswin`, `pvt` or `pvtv2`; the keys of the latter two are not reduced.
        attn_type: A letter a stage: `L` linear attention, `S` the host's own in windows or stripes, `M` and a number:
            so many linear blocks first. By default `LLSS`, for PVT and PVTv2 linear everywhere.
        window_size: Side of Swin's windows.
        split_sizes: Breadth of CSwin's stripes in each stage; in the last one they are the whole map.
        mlp_ratios: Hidden width of the MLPs over the width, of each stage; by default the host's.
        patch_size: Step of the stem: 4, or less for small pictures.
        focusing_factor: Power of the focused features.
        kernel_size: Side of the depthwise convolution of the values.
        **kwargs: As `Pyramid`: img_size, in_chans, num_classes, global_pool, the drop rates, device, dtype.

    Raises:
        ValueError: If the host is unknown or `attn_type` does not name one kind a stage.
    """

    def __init__(
        self,
        dims: Sequence[int],
        depths: Sequence[int],
        num_heads: Sequence[int],
        *,
        host: str = "swin",
        attn_type: str | None = None,
        window_size: int = 7,
        split_sizes: Sequence[int] = (1, 2, 7, 7),
        mlp_ratios: Sequence[float] | None = None,
        patch_size: int = 4,
        focusing_factor: int = 3,
        kernel_size: int = 5,
        **kwargs: Any,
    ) -> None:
        if host not in _HOSTS:
            raise ValueError(f"host must be one of {', '.join(_HOSTS)}, got {host!r}")
        table = _HOSTS[host]
        linear = _linear_blocks(attn_type or table.attn_type, depths, table.own_mixer is not None)

        def block(context: BlockContext, **dd: Any) -> nn.Module:
            stage, dim = context.stage, context.dim
            if context.block < linear[stage] or table.own_mixer is None:
                mixer: nn.Module = FocusedLinearAttention(
                    dim,
                    num_heads=context.num_heads,
                    grid_size=context.grid,
                    focusing_factor=focusing_factor,
                    kernel_size=kernel_size,
                    proj_drop=context.proj_drop,
                    **table.linear,
                    **dd,
                )
            else:
                mixer = table.own_mixer(context, stage == len(dims) - 1, window_size, split_sizes, **dd)
            parts = {}
            if table.position and context.block == 0 and context.grid:
                parts["position"] = PositionEmbedding(dim, context.grid, **dd)
            branch = branch_builder(context, norm=table.norm, **dd)
            ratio = (mlp_ratios or table.mlp_ratios)[stage]
            mlp = Mlp(dim, ratio=ratio, conv=table.mlp_conv, drop=context.proj_drop, **dd)
            return Block(**parts, attn=branch(mixer), mlp=branch(mlp))

        super().__init__(dims, depths, num_heads, block=block, **table.arguments(patch_size), **kwargs)
        self.host = host


def _linear_blocks(attn_type: str, depths: Sequence[int], has_softmax: bool) -> list[int]:
    """The number of blocks with linear attention in each stage."""
    letters = re.findall(r"L|S|M\d+", attn_type)
    if "".join(letters) != attn_type or len(letters) != len(depths) or (not has_softmax and set(letters) != {"L"}):
        kinds = "L, S or M and a number" if has_softmax else "L"
        raise ValueError(f"attn_type must name {kinds} for each of {len(depths)} stages, got {attn_type!r}")
    return [depth if kind == "L" else int(kind[1:] or 0) for kind, depth in zip(letters, depths, strict=True)]


def flatten_deit(*args: Any, focusing_factor: int = 3, kernel_size: int = 5, **kwargs: Any) -> Columnar:
    """A columnar transformer with linear attention. `(B, in_chans, H, W) -> (B, num_classes)`.

    Args:
        *args: As `Columnar`: dim, depth, num_heads.
        focusing_factor: Power of the focused features.
        kernel_size: Side of the depthwise convolution of the values.
        **kwargs: As `Columnar`.
    """

    def mixers(context: BlockContext, **dd: Any) -> dict[str, nn.Module]:
        given = {"focusing_factor": focusing_factor, "kernel_size": kernel_size, "proj_drop": context.proj_drop, **dd}
        attn = FocusedLinearAttention(context.dim, num_heads=context.num_heads, grid_size=context.grid, **given)
        return {"attn": attn}

    return Columnar(*args, mixers=mixers, **kwargs)


_OFFICIAL = (
    # DeiT.
    (r"^pos_embed$", "position.weight"),
    # PVT and PVTv2 count from 1.
    (r"^patch_embed1\.proj\.", "stem.conv."),
    (r"^patch_embed1\.norm\.", "stem.norm."),
    (r"^patch_embed(\d)\.proj\.", lambda m: f"stages.{int(m[1]) - 1}.downsample.conv."),
    (r"^patch_embed(\d)\.norm\.", lambda m: f"stages.{int(m[1]) - 1}.downsample.norm."),
    (r"^pos_embed(\d)$", lambda m: f"stages.{int(m[1]) - 1}.blocks.0.position.weight"),
    (r"^block(\d)\.(\d+)\.", lambda m: f"stages.{int(m[1]) - 1}.blocks.{m[2]}."),
    (r"^norm(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.norm."),
    (r"\.dwconv\.dwconv\.", ".conv."),
    *OFFICIAL_KEYS,
)


def checkpoint_filter_fn(state_dict: StateDict, model: nn.Module) -> StateDict:
    """Maps the official formats of all hosts to our keys and shapes; our own pass through.

    Args:
        state_dict: Flat weights, without prefixes.
        model: The network they are for.
    """
    columnar = isinstance(model, Columnar)
    native = rename_keys(state_dict, (*(STAGED_KEYS if columnar else ()), *_OFFICIAL))
    for name, module in model.named_modules():
        if isinstance(module, FocusedLinearAttention):
            native = FocusedLinearAttention.to_native(native, f"{name}.")
    own = model.state_dict()
    result = {}
    for key, value in native.items():
        if key.endswith((".relative_position_index", ".attn_mask")):
            continue  # tables that follow from the size of the picture
        if not columnar and model.host == "pvt" and key.startswith("final."):
            continue  # never applied
        if key.endswith("position.weight") and value.ndim == 3 and key in own:
            value = value.reshape(own[key].shape) if value.numel() == own[key].numel() else value
        result[key] = value
    return result


_CODE = {"paper_ids": "arXiv:2308.00442", "origin_url": "https://github.com/LeapLabTHU/FLatten-Transformer"}
_CFG = imagenet_cfg(**_CODE)
_CFG_384 = imagenet_cfg(**_CODE, input_size=(3, 384, 384), pool_size=(12, 12), crop_pct=1.0)
_PVT = {"dims": (64, 128, 320, 512), "num_heads": (1, 2, 5, 8)}


def _pyramid(host: str, size: str, arguments: dict[str, Any]) -> Network:
    cfg = _CFG_384 if size.endswith("_384") else _CFG
    return Network(f"FLatten in {host}, {size.replace('_', ' ')}.", FLatten, {"host": host, **arguments}, cfg)


register_family(
    __name__,
    {
        f"va_flatten_{host}_{size}": _pyramid(host, size, arguments)
        for host, size, arguments in (
            ("pvt", "tiny", {**_PVT, "depths": (2, 2, 2, 2)}),
            ("pvt", "small", {**_PVT, "depths": (3, 4, 6, 3)}),
            ("pvt", "medium", {**_PVT, "depths": (3, 4, 18, 3)}),
            ("pvt", "large", {**_PVT, "depths": (3, 8, 27, 3)}),
            ("pvtv2", "b0", {**_PVT, "dims": (32, 64, 160, 256), "depths": (2, 2, 2, 2)}),
            ("pvtv2", "b1", {**_PVT, "depths": (2, 2, 2, 2)}),
            ("pvtv2", "b2", {**_PVT, "depths": (3, 4, 6, 3)}),
            ("pvtv2", "b3", {**_PVT, "depths": (3, 4, 18, 3)}),
            ("pvtv2", "b4", {**_PVT, "depths": (3, 8, 27, 3)}),
            ("swin", "tiny", doubling(96, (2, 2, 6, 2), 3)),
            ("swin", "small", doubling(96, (2, 2, 18, 2), 3)),
            ("swin", "base", doubling(128, (2, 2, 18, 2), 4)),
            ("swin", "base_384", {**doubling(128, (2, 2, 18, 2), 4), "window_size": 12, "img_size": 384}),
            ("cswin", "tiny", doubling(64, (2, 4, 18, 1), 2)),
            ("cswin", "small", doubling(64, (2, 4, 32, 2), 2)),
            ("cswin", "base", doubling(96, (3, 6, 29, 2), 4)),
            (
                "cswin",
                "base_384",
                {**doubling(96, (3, 6, 29, 2), 4), "split_sizes": (1, 2, 12, 12), "img_size": 384},
            ),
        )
    }
    | {
        f"va_flatten_deit_{size}": Network(
            f"FLatten in DeiT, {size}.",
            flatten_deit,
            {"dim": dim, "num_heads": dim // 64},
            {**_CFG, "pool_size": (14, 14)},
            quarters,
        )
        for size, dim in (("tiny", 192), ("small", 384))
    },
    checkpoint_filter_fn,
)
