"""The one host of all token mixers: a stem, stages of blocks with downsampling between, norms, a head.

A family says what its blocks, stem, downsampling and norms are; everything that timm expects of a network is here. Maps
are channels-last inside, so that a mixer needs no reshaping; what comes out is `(B, C, H, W)`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import ClassifierHead, LayerNorm2d, NormMlpClassifierHead, calculate_drop_path_rates
from timm.models import checkpoint
from torch import nn

from ..builder import chosen_maps
from ..layers import Norm, PatchConv, PatchMerging

__all__ = ["BlockContext", "Pyramid", "fan_out_normal", "imagenet_cfg", "narrow_normal"]


@dataclass(frozen=True)
class BlockContext:
    """Where a block stands and what it is to drop: all that a family needs to choose its parts.

    Args:
        stage: Number of the stage, from 0.
        block: Number of the block in the stage, from 0.
        dim: Width of the stage.
        drop_path: Rate of stochastic depth here; it grows linearly from 0 at the first block of the network.
        attn_drop: Dropout of attention weights.
        proj_drop: Dropout after projections and in MLPs.
    """

    stage: int
    block: int
    dim: int
    drop_path: float = 0.0
    attn_drop: float = 0.0
    proj_drop: float = 0.0


class Stage(nn.Module):
    """Downsampling, blocks, a norm. `(B, H, W, C) -> (B, H', W', C')`."""

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module], norm: nn.Module) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)
        self.norm = norm
        self.grad_checkpointing = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.downsample(x)
        for block in self.blocks:
            x = checkpoint(block, x) if self.grad_checkpointing and self.training else block(x)
        return self.norm(x)


class Pyramid(nn.Module):
    """A network of token mixers. `(B, in_chans, H, W) -> (B, num_classes)`, any H, W of at least its stride.

    Without `downsample` all stages have the resolution of the stem: a columnar vision transformer is a row of such
    stages with one block each.

    Args:
        dims: Width of each stage.
        depths: Blocks of each stage.
        block: Builds a block: called with a `BlockContext`, `device` and `dtype`.
        stem: Builds what turns the picture, channels-last, into the first map: `(in_chans, dims[0])`.
        downsample: Builds what stands at the start of each further stage: `(dim, out_dim)`.
        stage_norm: Builds a norm for the end of each stage; the next stage reads what it gives.
        final: Builds what the last map goes through before the head, such as a norm: `(dims[-1])`.
        final_dim: Width after `final`, if it is another.
        head_norm: Epsilon of a layer norm between pooling and classifier; none leaves it out.
        feature_norms: Whether intermediate maps that are handed out go through a layer norm each, which the next stage
            does not see, as some dense prediction code has it.
        conv_init: Start of the convolutions; PyTorch's own by default.
        no_weight_decay_parts: Parts of the names of parameters without weight decay (besides biases and scales).
        in_chans: Channels of the picture.
        num_classes: Classes; 0 leaves the classifier out.
        global_pool: Pooling of the head, as in timm; empty for none.
        drop_rate: Dropout before the classifier.
        attn_drop_rate: Dropout of attention weights.
        proj_drop_rate: Dropout after projections and in MLPs.
        drop_path_rate: Stochastic depth of the last block; linear from 0 at the first.

    Raises:
        ValueError: If `dims` and `depths` do not fit each other.
    """

    def __init__(
        self,
        dims: Sequence[int],
        depths: Sequence[int],
        *,
        block: Callable[..., nn.Module],
        stem: Callable[..., nn.Module],
        downsample: Callable[..., nn.Module] | None = None,
        stage_norm: Norm | None = None,
        final: Norm | None = None,
        final_dim: int | None = None,
        head_norm: float | None = None,
        feature_norms: bool = False,
        conv_init: Callable[[nn.Conv2d], Any] | None = None,
        no_weight_decay_parts: Sequence[str] = (),
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if len(dims) != len(depths) or not dims or min(*dims, *depths) < 1:
            raise ValueError(f"dims and depths must name one number >= 1 a stage, got {tuple(dims)}, {tuple(depths)}")
        dd = {"device": device, "dtype": dtype}
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.no_weight_decay_parts = tuple(no_weight_decay_parts)
        self.stem = stem(in_chans, dims[0], **dd)
        drops = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        stages = []
        for stage, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
            down = downsample(dims[stage - 1], dim, **dd) if downsample and stage else nn.Identity()
            contexts = [
                BlockContext(stage, j, dim, drops[stage][j], attn_drop_rate, proj_drop_rate) for j in range(depth)
            ]
            norm = stage_norm(dim, **dd) if stage_norm else nn.Identity()
            stages.append(Stage(down, [block(context, **dd) for context in contexts], norm))
        self.stages = nn.Sequential(*stages)
        self.final = final(dims[-1], **dd) if final else nn.Identity()
        self.feature_norms = nn.ModuleList(nn.LayerNorm(dim, **dd) for dim in dims if feature_norms)
        self.num_features = final_dim or dims[-1]
        if head_norm is None:
            self.head = ClassifierHead(self.num_features, num_classes, global_pool, drop_rate, **dd)
        else:
            norm = partial(LayerNorm2d, eps=head_norm)
            self.head = NormMlpClassifierHead(
                self.num_features, num_classes, pool_type=global_pool, drop_rate=drop_rate, norm_layer=norm, **dd
            )
        self.feature_info = []
        reduction = _stride(self.stem)
        for i, dim in enumerate(dims):
            reduction *= _stride(self.stages[i].downsample)
            self.feature_info.append({"module": f"stages.{i}", "num_chs": dim, "reduction": reduction})
        self.apply(partial(_init, conv_init=conv_init))

    @property
    def head_hidden_size(self) -> int:
        """Width of what the classifier sees."""
        return self.head.num_features

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that no weight decay should touch beyond biases and scales."""
        return {name for name, _ in self.named_parameters() if any(part in name for part in self.no_weight_decay_parts)}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """How timm groups the parameters by depth, for layer-wise rates."""
        stages = (
            [(r"^stages\.(\d+)", None)]
            if coarse
            else [
                (r"^stages\.(\d+)\.downsample", (0,)),  # with the first block of its stage
                (r"^stages\.(\d+)\.blocks\.(\d+)", None),
                (r"^stages\.(\d+)\.norm", (99999,)),
            ]
        )
        return {"stem": r"^stem", "blocks": [*stages, (r"^final|^feature_norms", (99999,))]}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keeps only the input of each block for the backward pass and computes the rest again."""
        for stage in self.stages:
            stage.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Puts a new classifier in.

        Args:
            num_classes: Its classes; 0 for none.
            global_pool: Another pooling, if any.
        """
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """The maps at the ends of stages.

        Args:
            x: `(B, in_chans, H, W)`.
            indices: The last so many stages, or these; all by default.
            norm: Put the last map, if asked for, through `final`, as `forward_features` does.
            stop_early: Compute no further than the last one asked for.
            output_fmt: `NCHW` or `NHWC`.
            intermediates_only: Leave the final map out.

        Returns:
            The final map `(B, C, H, W)` and the list of maps, or the list alone.

        Raises:
            ValueError: If `output_fmt` is neither, or an index is out of range.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(f"output_fmt must be 'NCHW' or 'NHWC', got {output_fmt!r}")
        wanted = chosen_maps(indices, len(self.stages))
        x = self.stem(x.permute(0, 2, 3, 1))
        maps = []
        for i, stage in enumerate(self.stages[: max(wanted) + 1] if stop_early else self.stages):
            x = stage(x)
            if i in wanted:
                at_end = norm and i == len(self.stages) - 1
                y = self.feature_norms[i](x) if self.feature_norms else self.final(x) if at_end else x
                maps.append(y if output_fmt == "NHWC" else y.permute(0, 3, 1, 2))
        return maps if intermediates_only else (self.final(x).permute(0, 3, 1, 2), maps)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drops what these maps do not need.

        Args:
            indices: As in `forward_intermediates`.
            prune_norm: Drop `final` in any case.
            prune_head: Drop the classifier in any case.

        Returns:
            Numbers of the maps that are left to ask for.
        """
        wanted = chosen_maps(indices, len(self.stages))
        shortened = max(wanted) + 1 < len(self.stages)
        self.stages = self.stages[: max(wanted) + 1]
        if prune_norm or shortened:
            self.final = nn.Identity()
        if prune_head or shortened:
            self.num_classes = 0
            self.head.reset(0, "", reset_other=True)
        return wanted

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """The final map. `(B, in_chans, H, W) -> (B, num_features, H', W')`."""
        x = self.final(self.stages(self.stem(x.permute(0, 2, 3, 1))))
        return x.permute(0, 3, 1, 2)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Pools the final map and classifies it, or stops before the classifier."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))


def fan_out_normal(conv: nn.Conv2d) -> None:
    """Normal by the number of outputs a weight reaches, those of its group only: the start of Twins' and PVTv2's."""
    fan_out = conv.out_channels * prod(conv.kernel_size) // conv.groups
    nn.init.normal_(conv.weight, std=(2.0 / fan_out) ** 0.5)


def narrow_normal(conv: nn.Conv2d) -> None:
    """Truncated normal of 0.02, as linear layers have it."""
    nn.init.trunc_normal_(conv.weight, std=0.02)


def _init(module: nn.Module, conv_init: Callable[[nn.Conv2d], Any] | None) -> None:
    """Vision transformers' start. Parameters that mixers hold themselves were set when they were built."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, nn.Conv2d) and conv_init is not None:
        conv_init(module)
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def _stride(module: nn.Module) -> int:
    return prod(m.stride for m in module.modules() if isinstance(m, PatchConv | PatchMerging))


def imagenet_cfg(**kwargs: Any) -> dict[str, Any]:
    """timm's cfg of a network of this host for ImageNet-1K at 224 px.

    Args:
        **kwargs: Further fields, and ones to replace.
    """
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.conv",
        "classifier": "head.fc",
        **kwargs,
    }
