"""The base of all hosts of token mixers: the head, and everything that timm expects of a network.

A host runs a picture through its start, a row of levels (stages or blocks) and its end. Maps are channels-last inside,
so that a mixer needs no reshaping; what comes out is `(B, C, H, W)`.
"""

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any, Generic, TypeVar

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import ClassifierHead, LayerNorm2d, NormMlpClassifierHead
from timm.models import checkpoint
from torch import nn

from visionattn.ops.losses import Losses, add_loss, call_with_losses

from ..builder import chosen_maps
from ..layers import PatchConv, PatchMerging

__all__ = ["Backbone", "checkpoint_block", "fan_out_normal", "imagenet_cfg", "narrow_normal", "stride_of"]

Flow = TypeVar("Flow")  # what goes from level to level
ConvInit = Callable[[nn.Conv2d], Any]


class Backbone(nn.Module, Generic[Flow]):
    """A network of token mixers. `(B, in_chans, H, W) -> (B, num_classes)`.

    Hosts build `stem`, their levels, `final` and the head, and say how to `start`, `run`, `read` and `end`.
    """

    level_name: str  # attribute that holds the levels
    feature_info: list[dict[str, Any]]
    no_weight_decay_parts: tuple[str, ...] = ()  # of the names of parameters
    grad_checkpointing = False
    stem: nn.Module
    final: nn.Module
    head: Any  # one of timm's

    def build_head(
        self,
        width: int,
        *,
        num_classes: int,
        global_pool: str,
        drop_rate: float,
        norm_eps: float | None = None,
        **dd: Any,
    ) -> None:
        """Builds the head.

        Args:
            width: Width of what it gets.
            num_classes: Classes; 0 leaves the classifier out.
            global_pool: Pooling, as in timm; empty for none.
            drop_rate: Dropout before the classifier.
            norm_eps: Epsilon of a layer norm between pooling and classifier; none leaves it out.
            **dd: device and dtype.
        """
        self.num_classes = num_classes
        self.num_features = width
        if norm_eps is None:
            self.head = ClassifierHead(width, num_classes, global_pool, drop_rate, **dd)
        else:
            norm = partial(LayerNorm2d, eps=norm_eps)
            self.head = NormMlpClassifierHead(
                width, num_classes, pool_type=global_pool, drop_rate=drop_rate, norm_layer=norm, **dd
            )

    def init_weights(self, conv_init: ConvInit | None = None) -> None:
        """The initialisation of vision transformers. Mixers initialise their own parameters when built.

        Args:
            conv_init: Start of the convolutions' weights; none leaves PyTorch's.
        """
        self.apply(partial(_init, conv_init=conv_init))

    def start(self, x: torch.Tensor) -> Flow:
        """The input of the first level, from an image `(B, in_chans, H, W)`."""
        raise NotImplementedError

    def run(self, level: nn.Module, flow: Flow) -> Flow:
        """Runs a level and returns the input of the next."""
        raise NotImplementedError

    def read(self, flow: Flow, level: int, norm: bool) -> torch.Tensor:
        """The map after a level, `(B, H, W, C)`."""
        raise NotImplementedError

    def end(self, flow: Flow) -> torch.Tensor:
        """The network's features, from the output of the last level."""
        raise NotImplementedError

    @property
    def levels(self) -> nn.Sequential:
        """The stages or blocks, each of which can be read as a feature map."""
        return getattr(self, self.level_name)

    @property
    def head_hidden_size(self) -> int:
        """Width of the classifier's input."""
        return self.head.num_features

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """The final map. `(B, in_chans, H, W) -> (B, num_features, H', W')`."""
        flow = self.start(x)
        for level in self.levels:
            flow = self.run(level, flow)
        return self.end(flow)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Pools the features and classifies them, or stops before the classifier."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """The maps at the ends of levels.

        Args:
            x: `(B, in_chans, H, W)`.
            indices: The last so many levels, or these; all by default.
            norm: Put maps through the network's final norm, as far as it fits them.
            stop_early: Compute no further than the last one asked for.
            output_fmt: `NCHW` or `NHWC`.
            intermediates_only: Leave the features out.

        Returns:
            What `forward_features` gives and the list of maps, or the list alone.

        Raises:
            ValueError: If `output_fmt` is neither, or an index is out of range.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(f"output_fmt must be 'NCHW' or 'NHWC', got {output_fmt!r}")
        wanted = chosen_maps(indices, len(self.levels))
        flow = self.start(x)
        maps = []
        for i, level in enumerate(self.levels[: max(wanted) + 1] if stop_early else self.levels):
            flow = self.run(level, flow)
            if i in wanted:
                y = self.read(flow, i, norm)
                maps.append(y if output_fmt == "NHWC" else y.permute(0, 3, 1, 2))
        return maps if intermediates_only else (self.end(flow), maps)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Removes the layers that these maps do not need.

        Args:
            indices: As in `forward_intermediates`.
            prune_norm: Drop the final norm in any case.
            prune_head: Drop the classifier in any case.

        Returns:
            Numbers of the maps that are left to ask for.
        """
        wanted = chosen_maps(indices, len(self.levels))
        shortened = max(wanted) + 1 < len(self.levels)
        setattr(self, self.level_name, self.levels[: max(wanted) + 1])
        if prune_norm or shortened:
            self.final = nn.Identity()
        if prune_head or shortened:
            self.num_classes = 0
            self.head.reset(0, "", reset_other=True)
        return wanted

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the classifier.

        Args:
            num_classes: Its classes; 0 for none.
            global_pool: Another pooling, if any.
        """
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The classifier, the last layer."""
        return self.head.fc

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of parameters excluded from weight decay, besides biases and scales."""
        return {name for name, _ in self.named_parameters() if any(part in name for part in self.no_weight_decay_parts)}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keeps only the input of each block for the backward pass and recomputes the rest."""
        self.grad_checkpointing = enable


def checkpoint_block(block: nn.Module, *args: Any) -> Any:
    """Runs a block and keeps only its input for the backward pass; its losses are reported once.

    Args:
        block: The block.
        *args: Its arguments.
    """

    out, losses = checkpoint(_with_losses, block, *args)
    for name, values in losses.items():
        for value in values:
            add_loss(name, value)
    return out


def _with_losses(block: nn.Module, *args: Any) -> tuple[Any, Losses]:
    """The output of a block and its losses, as a compiled checkpointed region must return everything it changes."""
    losses: Losses = {}
    return call_with_losses(block, *args, losses=losses), losses


def fan_out_normal(conv: nn.Conv2d) -> None:
    """Normal by fan-out, counted within the group: the initialisation of Twins and PVTv2."""
    fan_out = conv.out_channels * prod(conv.kernel_size) // conv.groups
    nn.init.normal_(conv.weight, std=(2.0 / fan_out) ** 0.5)


def narrow_normal(layer: nn.Conv2d | nn.Linear) -> None:
    """Truncated normal of 0.02."""
    nn.init.trunc_normal_(layer.weight, std=0.02)


def _init(module: nn.Module, conv_init: ConvInit | None) -> None:
    if isinstance(module, nn.Linear):
        narrow_normal(module)
    elif isinstance(module, nn.Conv2d) and conv_init is not None:
        conv_init(module)
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def stride_of(module: nn.Module) -> int:
    """The factor by which a stem or a downsampling reduces the map."""
    return prod(m.stride for m in module.modules() if isinstance(m, PatchConv | PatchMerging))


def imagenet_cfg(**kwargs: Any) -> dict[str, Any]:
    """timm's cfg of a network of these hosts for ImageNet-1K at 224 px.

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
        "license": "apache-2.0",
        **kwargs,
    }
