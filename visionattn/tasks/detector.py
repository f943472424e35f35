"""Object detection and instance segmentation: torchvision's detectors, or one's own, over any timm network.

RetinaNet (arXiv 1708.02002), FCOS (arXiv 1904.01355), Faster R-CNN (arXiv 1506.01497) and Mask R-CNN (arXiv
1703.06870), each over a feature pyramid (arXiv 1612.03144).
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.models.detection.transform import resize_boxes

from visionattn.plugins._condition import given_condition
from visionattn.utils.building import build

from . import _torchvision  # noqa: F401  (registered by importing)
from ._base import Task, check_kinds
from ._conditions import batch_condition
from ._features import FeatureMaps, find_maps, pad_to_multiple
from .registry import DETECTORS

__all__ = ["Detector", "PaddedBatch"]


class Detector(Task):
    """A detector over the feature maps of a timm network.

    Pictures come normalised and padded from the data preprocessor and are neither resized nor normalised again; boxes
    are clipped to each picture's own `size`. torchvision's detectors have a pyramid on the network's last three maps
    (R-CNNs: four), as a rule those with strides 8 (4) to 32, with two coarser levels (R-CNNs: one) on top.

    Args:
        backbone: Arguments of `timm.create_model`, `model_name` among them; `strides=(8, 16)` chooses other maps of
            any network, `out_indices` those of one.
            `pretrained='packaged'` takes weights that come with the package and none if there are none.
        detector: `type` is a name in `visionattn.tasks.DETECTORS`: `RetinaNet`, `FCOS`, `FasterRCNN`, `MaskRCNN`. The
            rest are its arguments, of torchvision's class of that name (`score_thresh`, `nms_thresh`,
            `detections_per_img`, `topk_candidates`, `box_score_thresh`, `rpn_nms_thresh`, ...).
        num_classes: Classes of objects, without background.
        pyramid_channels: Width of the pyramid and the heads, 256 by default; for FCOS, whose heads norm 32 groups of
            channels, 64 or another multiple of 32.
        pyramid_norm: Whether the pyramid's convolutions have batch normalisation, which helps training from scratch.
        anchors: `sizes`, a list of numbers for each level, and `aspect_ratios`, a list of numbers for all levels;
            either may be left out. By default torchvision's, in proportion to the strides. FCOS takes `sizes` only, one
            number a level.
        attach: Arguments of `visionattn.attach`: puts a plug-in into the backbone, pretrained weights kept.
        replace_attention: Arguments of `visionattn.replace_attention`: a mixer in the place of attention in a
            vision transformer.
        frozen_stages: How many of the backbone's stages (with all before them) do not learn: 1 is the stem and the
            first stage.
        norm_eval: Whether the backbone's batch normalisation keeps its statistics, as it should with few pictures a
            step.
        channels_last: As for `Task`.
        compile: Compile the backbone with torch.compile: True, or its arguments.
        start_from: As for `Task`.
        loss_collectors: As for `Task`.
        data_preprocessor: As for `Task`.
        frontend: As for `Task`.

    Raises:
        ValueError: If an argument is unknown or out of range.
    """

    kind = "detection"

    def __init__(
        self,
        backbone: dict[str, Any],
        detector: dict[str, Any],
        num_classes: int,
        pyramid_channels: int | None = None,
        pyramid_norm: bool | None = None,
        anchors: dict[str, Any] | None = None,
        attach: dict[str, Any] | None = None,
        replace_attention: dict[str, Any] | None = None,
        frozen_stages: int = 0,
        norm_eval: bool = False,
        channels_last: bool = False,
        compile: bool | dict[str, Any] = False,
        start_from: dict[str, Any] | None = None,
        loss_collectors: Sequence[dict[str, Any]] = ({"type": "ReportedLosses"},),
        data_preprocessor: dict[str, Any] | nn.Module | None = None,
        frontend: dict[str, Any] | None = None,
    ) -> None:
        check_kinds(
            dict,
            "a dict",
            backbone=backbone,
            detector=detector,
            anchors=anchors,
            attach=attach,
            replace_attention=replace_attention,
        )
        check_kinds(int, "a whole number", num_classes=num_classes, frozen_stages=frozen_stages)
        check_kinds(int, "a whole number", pyramid_channels=pyramid_channels)
        in_chans = backbone.get("in_chans", 3)
        super().__init__(in_chans, channels_last, start_from, loss_collectors, data_preprocessor, frontend)
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1 (objects, without background), got {num_classes}")
        self.num_classes = num_classes
        maps = partial(
            FeatureMaps, backbone, attach, replace_attention, compile, frozen_stages=frozen_stages, norm_eval=norm_eval
        )
        neck = {"pyramid_channels": pyramid_channels, "pyramid_norm": pyramid_norm, "anchors": anchors}
        arguments = {**detector, **{key: value for key, value in neck.items() if value is not None}}
        self.detector = build(
            DETECTORS,
            arguments,
            "detector",
            build_maps=lambda levels=None: maps(levels=levels),
            num_classes=num_classes,
        )
        self.with_masks: bool = getattr(self.detector, "with_masks", False)
        self.first_class: int = getattr(self.detector, "first_class", 0)
        self.divisor = self.backbone.divisor
        self.to(memory_format=self.memory_format)

    @property
    def backbone(self) -> FeatureMaps:
        """The part that comes from timm."""
        return find_maps(self.detector)

    def forward(
        self, inputs: torch.Tensor, data_samples: Sequence[dict[str, Any]] | None = None, mode: str = "tensor"
    ) -> list[torch.Tensor] | dict[str, torch.Tensor] | list[dict[str, Any]]:
        """Runs the network.

        Args:
            inputs: `(B, C, H, W)`, normalised, padded below and to the right.
            data_samples: One dict a picture. `size` `(h, w)` without the padding; for `loss` also `boxes` `(N, 4)`,
                `labels` `(N,)` and, for Mask R-CNN, `masks` `(N, h, w)`; for `predict` also `original` with the `size`
                of the original picture, into which predictions are scaled, and what the metrics compare with; and
                `condition` where the backbone takes one, `(D,)` or `(S, h, w)`.
            mode: `tensor` gives the maps of the pyramid, `loss` a dict of losses, `predict` one dict a picture with
                `preds` (`boxes`, `scores`, `labels` and, from Mask R-CNN, `masks` `(N, h0, w0)` bool) and `target`.

        Raises:
            ValueError: If the mode is unknown, `loss` is wanted in evaluation mode or `predict` in training mode, or
                the inputs are no batch of normalised pictures.
        """
        inputs = self.checked(inputs)
        padded = pad_to_multiple(inputs, self.divisor)
        with given_condition(batch_condition(data_samples, padded)):
            return self._run(inputs, data_samples, mode)

    def _run(self, inputs: torch.Tensor, data_samples: Sequence[dict[str, Any]] | None, mode: str) -> Any:
        if mode == "tensor":
            maps = getattr(self.detector, "backbone", self.backbone)(self._padded(inputs))
            return list(maps.values() if isinstance(maps, dict) else maps)
        if mode not in ("loss", "predict"):
            raise ValueError(f"mode must be 'tensor', 'loss' or 'predict', got {mode!r}")
        if self.detector.training != (mode == "loss"):
            raise ValueError(f"mode {mode!r} needs the model in {'training' if mode == 'loss' else 'evaluation'} mode")
        assert data_samples is not None, f"mode {mode!r} needs data_samples"
        sizes = [tuple(map(int, sample["size"])) for sample in data_samples]
        if mode == "predict":
            found = self.detector(PaddedBatch(self._padded(inputs), sizes))
            return [self._finish(*pair) for pair in zip(found, data_samples, strict=True)]
        targets = [self._target(sample) for sample in data_samples]
        losses = self.with_collected(lambda: self.detector(PaddedBatch(self._padded(inputs), sizes), targets))
        return {key if "loss" in key else f"loss_{key}": value for key, value in losses.items()}

    def _padded(self, inputs: torch.Tensor) -> torch.Tensor:
        return pad_to_multiple(self.enhanced(inputs), self.divisor)

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
            # A few at a time, for the probabilities of a hundred masks on a photograph take gigabytes.
            parts = zip(found["masks"].split(8), boxes.split(8), strict=True)
            pasted = [paste_masks_in_image(masks, some, size)[:, 0] >= 0.5 for masks, some in parts]
            preds["masks"] = torch.cat(pasted)
        return {"preds": preds, "target": original}


class PaddedBatch(ImageList):
    """Padded images that yield their unpadded parts, since torchvision reads the sizes from a list of images."""

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (x[:, :h, :w] for x, (h, w) in zip(self.tensors, self.image_sizes, strict=True))
