"""torchvision's detectors over our feature maps, with a pyramid between."""

import inspect
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7
from torchvision.ops.poolers import initLevelMapper

from ._features import FeatureMaps
from .registry import DETECTORS

__all__ = ["build_detector"]


@dataclass(frozen=True)
class _Kind:
    """The layout of torchvision's own models of a kind: pyramid and anchors, in terms of strides."""

    cls: type[nn.Module]
    levels: int  # of the backbone
    anchors: Callable[[int], tuple[int, ...]]  # sizes on a level, from its stride
    ratios: tuple[float, ...]
    two_stage: bool


def _octave(stride: int) -> tuple[int, ...]:
    return tuple(int(4 * stride * 2 ** (third / 3)) for third in range(3))


_KINDS = (
    _Kind(RetinaNet, 3, _octave, (0.5, 1.0, 2.0), two_stage=False),
    _Kind(FCOS, 3, lambda stride: (stride,), (1.0,), two_stage=False),
    _Kind(FasterRCNN, 4, lambda stride: (8 * stride,), (0.5, 1.0, 2.0), two_stage=True),
    _Kind(MaskRCNN, 4, lambda stride: (8 * stride,), (0.5, 1.0, 2.0), two_stage=True),
)


def build_detector(
    kind: _Kind,
    build_maps: Callable[[int], FeatureMaps],
    num_classes: int,
    pyramid_channels: int = 256,
    pyramid_norm: bool = False,
    anchors: dict[str, Any] | None = None,
    **arguments: Any,
) -> nn.Module:
    """A detector of torchvision that takes images without resizing or normalising them.

    Args:
        kind: Which one.
        build_maps: Makes the feature maps, given how many.
        num_classes: Classes of objects, without background.
        pyramid_channels: Width of the pyramid and the heads.
        pyramid_norm: Whether the pyramid's convolutions have batch normalisation.
        anchors: `sizes`, a list of numbers for each level, and `aspect_ratios`, a list of numbers for all levels.
        **arguments: Of torchvision's class.

    Raises:
        ValueError: If an argument is unknown or out of range.
    """
    name = kind.cls.__name__
    if kind.cls is FCOS and (pyramid_channels % 32 or pyramid_channels < 64):
        raise ValueError(f"FCOS needs pyramid_channels of 64, 96, ... (a multiple of 32), got {pyramid_channels}")
    _check_names(name, kind.cls, arguments)
    maps = build_maps(kind.levels)
    pyramid = _Pyramid(maps, pyramid_channels, pyramid_norm, pooled=kind.two_stage)
    generator = _anchor_generator(kind, pyramid.strides, dict(anchors or {}))
    if kind.two_stage:
        arguments |= {"rpn_anchor_generator": generator, "box_roi_pool": _roi_pool(maps.strides, 7)}
        if kind.cls is MaskRCNN:
            arguments["mask_roi_pool"] = _roi_pool(maps.strides, 14)
    else:
        arguments["anchor_generator"] = generator
    # R-CNNs count the background as class 0.
    detector: Any = kind.cls(pyramid, num_classes + int(kind.two_stage), **arguments)
    detector.first_class = int(kind.two_stage)
    detector.with_masks = kind.cls is MaskRCNN
    detector.transform = _AsIs()
    for head in _heads(detector):
        head.register_forward_hook(_in_full_precision)
    return detector


for _kind in _KINDS:
    DETECTORS.register_module(name=_kind.cls.__name__, module=partial(build_detector, _kind))


class _Pyramid(nn.Module):
    """Backbone and feature pyramid, as torchvision's detectors take them: `(B, C, H, W) -> {'0': ..., '1': ...}`."""

    def __init__(self, maps: FeatureMaps, channels: int, norm: bool, pooled: bool) -> None:
        super().__init__()
        self.out_channels = channels
        self.maps = maps
        top = LastLevelMaxPool() if pooled else LastLevelP6P7(channels, channels)
        self.fpn = FeaturePyramidNetwork(maps.channels, channels, top, nn.BatchNorm2d if norm else None)
        self.strides = [*maps.strides, *(maps.strides[-1] * 2**step for step in ((1,) if pooled else (1, 2)))]

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.fpn(OrderedDict((str(level), m) for level, m in enumerate(self.maps(x))))


class _AsIs(nn.Module):
    """Replaces torchvision's resizing and normalising."""

    def forward(self, images: Any, targets: Any) -> tuple[Any, Any]:
        return images, targets

    def postprocess(self, found: list[dict[str, torch.Tensor]], *sizes: Any) -> list[dict[str, torch.Tensor]]:
        """Leaves the predictions as they are."""
        return found


def _anchor_generator(kind: _Kind, strides: Sequence[int], anchors: dict[str, Any]) -> AnchorGenerator:
    sizes = anchors.pop("sizes", [kind.anchors(stride) for stride in strides])
    ratios = anchors.pop("aspect_ratios", kind.ratios)
    if anchors:
        raise ValueError(f"anchors have sizes and aspect_ratios, got {', '.join(anchors)}")
    for key, lists in (("sizes", sizes), ("aspect_ratios", [ratios])):
        if not all(isinstance(level, (list, tuple)) for level in lists):
            what = "a list of numbers for each level" if key == "sizes" else "a list of numbers"
            raise ValueError(f"anchors.{key} must be {what}, got {sizes if key == 'sizes' else ratios}")
    if len(sizes) != len(strides):
        raise ValueError(
            f"anchors.sizes needs a list for each of the {len(strides)} levels (strides "
            f"{', '.join(map(str, strides))}), got {len(sizes)}"
        )
    if kind.cls is FCOS and (tuple(ratios) != (1.0,) or any(len(level) != 1 for level in sizes)):
        raise ValueError(f"FCOS has one point a place: one size a level and no aspect_ratios, got {sizes}, {ratios}")
    return AnchorGenerator(tuple(map(tuple, sizes)), (tuple(ratios),) * len(strides))


def _roi_pool(strides: Sequence[int], size: int) -> MultiScaleRoIAlign:
    """torchvision's RoI pooling with given strides, which it would guess, wrongly for small images."""
    pool = MultiScaleRoIAlign([str(level) for level in range(len(strides))], size, sampling_ratio=2)
    pool.scales = [1 / stride for stride in strides]
    pool.map_levels = initLevelMapper(strides[0].bit_length() - 1, strides[-1].bit_length() - 1)
    return pool


def _check_names(name: str, cls: type[nn.Module], arguments: dict[str, Any]) -> None:
    """Refuses unknown arguments, which would go to the unused resizing and be ignored."""
    parents = [c for c in (cls, FasterRCNN) if issubclass(cls, c)]
    known = {key for parent in parents for key in inspect.signature(parent).parameters}
    ours = {"rpn_anchor_generator", "anchor_generator", "box_roi_pool", "mask_roi_pool"}
    resizing = {"backbone", "num_classes", "min_size", "max_size", "image_mean", "image_std", "kwargs"}
    if unknown := sorted(arguments.keys() - (known - resizing - ours)):
        raise ValueError(
            f"{name} of torchvision takes no {', '.join(unknown)} here; it takes "
            f"{', '.join(sorted(known - resizing - ours))}"
        )


def _heads(detector: Any) -> list[nn.Module]:
    if not hasattr(detector, "roi_heads"):
        return [detector.head]
    heads = [detector.rpn.head, detector.roi_heads.box_predictor, detector.roi_heads.mask_predictor]
    return [head for head in heads if head is not None]


def _in_full_precision(head: nn.Module, inputs: Any, outputs: Any) -> Any:
    """Runs boxes, scores and losses in float32: bfloat16 has three digits for a coordinate."""
    return tree_map(lambda value: value.float() if isinstance(value, torch.Tensor) else value, outputs)
