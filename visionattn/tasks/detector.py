"""Object detection and instance segmentation: torchvision's detectors over any timm network.

RetinaNet (arXiv 1708.02002), FCOS (arXiv 1904.01355), Faster R-CNN (arXiv 1506.01497) and Mask R-CNN (arXiv
1703.06870), each over a feature pyramid (arXiv 1612.03144).
"""

import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.registry import MODELS
from torch import nn
from torch.utils._pytree import tree_map
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.models.detection.transform import resize_boxes
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7
from torchvision.ops.poolers import initLevelMapper

from ._base import Task, with_mixer_losses
from ._features import FeatureMaps, pad_to_multiple

__all__ = ["Detector"]


@dataclass(frozen=True)
class _Kind:
    """What torchvision's own models of a kind look like: pyramid and anchors, in terms of strides."""

    cls: type[nn.Module]
    levels: int  # of the backbone
    anchors: Callable[[int], tuple[int, ...]]  # sizes on a level, from its stride
    ratios: tuple[float, ...]
    two_stage: bool


def _octave(stride: int) -> tuple[int, ...]:
    return tuple(int(4 * stride * 2 ** (third / 3)) for third in range(3))


_KINDS = {
    "RetinaNet": _Kind(RetinaNet, 3, _octave, (0.5, 1.0, 2.0), two_stage=False),
    "FCOS": _Kind(FCOS, 3, lambda stride: (stride,), (1.0,), two_stage=False),
    "FasterRCNN": _Kind(FasterRCNN, 4, lambda stride: (8 * stride,), (0.5, 1.0, 2.0), two_stage=True),
    "MaskRCNN": _Kind(MaskRCNN, 4, lambda stride: (8 * stride,), (0.5, 1.0, 2.0), two_stage=True),
}


@MODELS.register_module()
class Detector(Task):
    """A detector of torchvision over the feature maps of a timm network.

    Pictures come normalised and padded from the data preprocessor and are neither resized nor normalised again; boxes
    are clipped to each picture's own `size`. The pyramid stands on the network's last three maps (R-CNNs: four), as a
    rule those with strides 8 (4) to 32, and has two coarser levels (R-CNNs: one) on top.

    Args:
        backbone: Arguments of `timm.create_model`, `model_name` among them; `out_indices` chooses other maps.
        detector: `type` is `RetinaNet`, `FCOS`, `FasterRCNN` or `MaskRCNN`, the rest arguments of torchvision's class
            of that name (`score_thresh`, `nms_thresh`, `detections_per_img`, `topk_candidates`, `box_score_thresh`,
            `rpn_nms_thresh`, ...).
        num_classes: Classes of objects, without background.
        pyramid_channels: Width of the pyramid and the heads; for FCOS, whose heads norm 32 groups of channels, 64
            or another multiple of 32.
        pyramid_norm: Whether the pyramid's convolutions have batch normalisation, which helps training from scratch.
        anchors: `sizes`, a list of numbers for each level, and `aspect_ratios`, a list of numbers for all levels;
            either may be left out. By default torchvision's, in proportion to the strides. FCOS takes `sizes` only, one
            number a level.
        attach: Arguments of `visionattn.attach`: puts a plug-in into the backbone, pretrained weights kept.
        frozen_stages: How many of the backbone's stages (with all before them) do not learn: 1 is the stem and the
            first stage.
        norm_eval: Whether the backbone's batch normalisation keeps its statistics, as it should with few pictures a
            step.
        channels_last: Keep weights and maps with their channels innermost, which convolutions are often faster with.
        compile: Compile the backbone with torch.compile: True, or its arguments.
        data_preprocessor: As in mmengine, usually `dict(type='ImgDataPreprocessor', mean=[...], std=[...])`.

    Raises:
        ValueError: If an argument is unknown or out of range.
    """

    kind = "detection"

    def __init__(
        self,
        backbone: dict[str, Any],
        detector: dict[str, Any],
        num_classes: int,
        pyramid_channels: int = 256,
        pyramid_norm: bool = False,
        anchors: dict[str, Any] | None = None,
        attach: dict[str, Any] | None = None,
        frozen_stages: int = 0,
        norm_eval: bool = False,
        channels_last: bool = False,
        compile: bool | dict[str, Any] = False,
        data_preprocessor: dict[str, Any] | nn.Module | None = None,
    ) -> None:
        super().__init__(channels_last, data_preprocessor)
        arguments = dict(detector)
        name = arguments.pop("type", None)
        if name not in _KINDS:
            raise ValueError(f"detector type must be one of {', '.join(_KINDS)}, got {name!r}")
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1 (objects, without background), got {num_classes}")
        if name == "FCOS" and (pyramid_channels % 32 or pyramid_channels < 64):
            raise ValueError(f"FCOS needs pyramid_channels of 64, 96, ... (a multiple of 32), got {pyramid_channels}")
        kind = _KINDS[name]
        self.num_classes = num_classes
        self.with_masks = kind.cls is MaskRCNN
        # R-CNNs count the background as class 0.
        self.first_class = int(kind.two_stage)
        maps = FeatureMaps(
            backbone, attach, compile, levels=kind.levels, frozen_stages=frozen_stages, norm_eval=norm_eval
        )
        pyramid = _Pyramid(maps, pyramid_channels, pyramid_norm, pooled=kind.two_stage)
        self.divisor = max(maps.strides)
        generator = _anchor_generator(kind, pyramid.strides, dict(anchors or {}))
        if kind.two_stage:
            arguments |= {"rpn_anchor_generator": generator, "box_roi_pool": _roi_pool(maps.strides, 7)}
            if self.with_masks:
                arguments["mask_roi_pool"] = _roi_pool(maps.strides, 14)
        else:
            arguments["anchor_generator"] = generator
        _check_names(name, kind.cls, arguments)
        try:
            self.detector = kind.cls(pyramid, num_classes + self.first_class, **arguments)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"cannot build {name}({detector}, pyramid_channels={pyramid_channels}): {error}"
            ) from error
        self.detector.transform = _AsIs()
        for head in _heads(self.detector):
            head.register_forward_hook(_in_full_precision)
        self.to(memory_format=self.memory_format)

    @property
    def backbone(self) -> FeatureMaps:
        """The part that comes from timm."""
        return self.detector.backbone.maps

    def forward(
        self, inputs: torch.Tensor, data_samples: Sequence[dict[str, Any]] | None = None, mode: str = "tensor"
    ) -> list[torch.Tensor] | dict[str, torch.Tensor] | list[dict[str, Any]]:
        """Runs the network.

        Args:
            inputs: `(B, C, H, W)`, normalised, padded below and to the right.
            data_samples: One dict a picture. `size` `(h, w)` without the padding; for `loss` also `boxes` `(N, 4)`,
                `labels` `(N,)` and, for Mask R-CNN, `masks` `(N, h, w)`; for `predict` also `original` with the `size`
                of the original picture, into which predictions are scaled, and what the metrics compare with.
            mode: `tensor` gives the maps of the pyramid, `loss` a dict of losses, `predict` one dict a picture with
                `preds` (`boxes`, `scores`, `labels` and, from Mask R-CNN, `masks` `(N, h0, w0)` bool) and `target`.

        Raises:
            ValueError: If the mode is unknown, or `loss` is wanted in evaluation mode or `predict` in training mode.
        """
        inputs = pad_to_multiple(inputs.to(memory_format=self.memory_format), self.divisor)
        if mode == "tensor":
            return list(self.detector.backbone(inputs).values())
        if mode not in ("loss", "predict"):
            raise ValueError(f"mode must be 'tensor', 'loss' or 'predict', got {mode!r}")
        if self.detector.training != (mode == "loss"):
            raise ValueError(f"mode {mode!r} needs the model in {'training' if mode == 'loss' else 'evaluation'} mode")
        batch = _Batch(inputs, [tuple(map(int, sample["size"])) for sample in data_samples])
        if mode == "predict":
            found = self.detector(batch)
            return [self._finish(*pair) for pair in zip(found, data_samples, strict=True)]
        losses = with_mixer_losses(self.detector, batch, [self._target(sample) for sample in data_samples])
        return {key if "loss" in key else f"loss_{key}": value for key, value in losses.items()}

    def _target(self, sample: dict[str, Any]) -> dict[str, torch.Tensor]:
        target = {"boxes": sample["boxes"].float(), "labels": sample["labels"] + self.first_class}
        if self.with_masks:
            if "masks" not in sample:
                raise ValueError("MaskRCNN needs masks, and the data set gives none: ask it for them")
            target["masks"] = sample["masks"].to(torch.uint8)
        return target

    def _finish(self, found: dict[str, torch.Tensor], sample: dict[str, Any]) -> dict[str, Any]:
        """Predictions in pixels of the original picture."""
        original = sample.get("original", sample)
        size = tuple(map(int, original["size"]))
        boxes = resize_boxes(found["boxes"], list(map(int, sample["size"])), list(size))
        preds = {"boxes": boxes, "scores": found["scores"], "labels": found["labels"] - self.first_class}
        if self.with_masks:
            preds["masks"] = paste_masks_in_image(found["masks"], boxes, size)[:, 0] >= 0.5
        return {"preds": preds, "target": original}


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


class _Batch(ImageList):
    """Padded pictures that yield their true parts, for torchvision asks the pictures of a list for their sizes."""

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (x[:, :h, :w] for x, (h, w) in zip(self.tensors, self.image_sizes, strict=True))


class _AsIs(nn.Module):
    """In place of torchvision's resizing and normalising."""

    def forward(self, images: _Batch, targets: Any) -> tuple[_Batch, Any]:
        return images, targets

    def postprocess(self, found: list[dict[str, torch.Tensor]], *sizes: Any) -> list[dict[str, torch.Tensor]]:
        """Leaves the predictions as they are."""
        return found


def _anchor_generator(kind: _Kind, strides: list[int], anchors: dict[str, Any]) -> AnchorGenerator:
    sizes = anchors.pop("sizes", [kind.anchors(stride) for stride in strides])
    ratios = anchors.pop("aspect_ratios", kind.ratios)
    if anchors:
        raise ValueError(f"anchors have sizes and aspect_ratios, got {', '.join(anchors)}")
    if len(sizes) != len(strides):
        raise ValueError(
            f"anchors.sizes needs a list for each of the {len(strides)} levels (strides "
            f"{', '.join(map(str, strides))}), got {len(sizes)}"
        )
    if kind.cls is FCOS and (tuple(ratios) != (1.0,) or any(len(level) != 1 for level in sizes)):
        raise ValueError(f"FCOS has one point a place: one size a level and no aspect_ratios, got {sizes}, {ratios}")
    return AnchorGenerator(tuple(map(tuple, sizes)), (tuple(ratios),) * len(strides))


def _roi_pool(strides: list[int], size: int) -> MultiScaleRoIAlign:
    """torchvision's, told the strides: it would guess them from the first batch, and wrongly from small pictures."""
    pool = MultiScaleRoIAlign([str(level) for level in range(len(strides))], size, sampling_ratio=2)
    pool.scales = [1 / stride for stride in strides]
    pool.map_levels = initLevelMapper(strides[0].bit_length() - 1, strides[-1].bit_length() - 1)
    return pool


def _check_names(name: str, cls: type[nn.Module], arguments: dict[str, Any]) -> None:
    """Unknown arguments would go on to the resizing that is not used, and be forgotten."""
    parents = [c for c in (cls, FasterRCNN) if issubclass(cls, c)]
    known = {key for parent in parents for key in inspect.signature(parent).parameters}
    resizing = {"backbone", "num_classes", "min_size", "max_size", "image_mean", "image_std", "kwargs"}
    if unknown := sorted(arguments.keys() - (known - resizing)):
        raise ValueError(
            f"{name} of torchvision takes no {', '.join(unknown)} here; it takes {', '.join(sorted(known - resizing))}"
        )


def _heads(detector: nn.Module) -> list[nn.Module]:
    if not hasattr(detector, "roi_heads"):
        return [detector.head]
    heads = [detector.rpn.head, detector.roi_heads.box_predictor, detector.roi_heads.mask_predictor]
    return [head for head in heads if head is not None]


def _in_full_precision(head: nn.Module, inputs: Any, outputs: Any) -> Any:
    """Boxes, scores and losses need float32: bfloat16 knows three digits of a coordinate."""
    return tree_map(lambda value: value.float() if isinstance(value, torch.Tensor) else value, outputs)
