"""Detectors and segmentors as networks of classes, so that what explains a classifier explains them.

A detection is explained by the log-odds of its box, a segmentation by the mean logit of a class over a region:

    network = explain.BoxScores(detector, box)
    explain.relevance(network, x, target=label)

Relevance and class activation maps follow the gradient through neck and head; attention is that of the backbone. As no
extra token is read, maps of attention are the mean over the patches, as for classifiers that pool.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.autograd import forward_ad
from torchvision.ops import box_iou

__all__ = ["BoxScores", "RegionScores"]


class _Scores(nn.Module, ABC):
    """A task of `visionattn.tasks` in evaluation mode; traced for positions, only its backbone runs."""

    def __init__(self, task: Any) -> None:
        super().__init__()
        self.task = task

    @property
    def backbone(self) -> nn.Module:
        """The part with the attention."""
        part: nn.Module = self.task.backbone
        return part

    def forward(self, x: torch.Tensor) -> Any:
        if forward_ad._current_level >= 0:  # heads have operations without a rule for tangents, and no attention
            return self.backbone(x)
        return self.scores(x)

    @abstractmethod
    def scores(self, x: torch.Tensor) -> torch.Tensor:
        """`(B, C, H, W) -> (B, classes)`."""


class BoxScores(_Scores):
    """How well a detector finds an object of each class at a place. `(B, C, H, W) -> (B, classes)`.

    The log-odds of the highest score among the detections that overlap the box, as classifiers give logits; -13.8 for
    classes without such a detection: one in a million.

    Args:
        detector: A `visionattn.tasks.Detector` in evaluation mode.
        box: Left, top, right, bottom in pixels of the network's input.
        overlap: The least intersection over union with the box, in 0..1 (0.5: as detections are counted).

    Raises:
        ValueError: If the box is empty or `overlap` out of range.
    """

    def __init__(self, detector: Any, box: Sequence[float] | torch.Tensor, overlap: float = 0.5) -> None:
        super().__init__(detector)
        self.box = torch.as_tensor(box, dtype=torch.float32).detach()
        if self.box.shape != (4,) or not (self.box[2:] > self.box[:2]).all():
            raise ValueError(f"box must be left, top, right, bottom with left < right, top < bottom, got {box}")
        if not 0 <= overlap <= 1:
            raise ValueError(f"overlap must lie in 0..1, got {overlap}")
        self.overlap = overlap

    def scores(self, x: torch.Tensor) -> torch.Tensor:
        found = self.task(x, [{"size": tuple(x.shape[-2:])}] * len(x), mode="predict")
        rows = []
        for preds in (result["preds"] for result in found):
            near = box_iou(preds["boxes"], self.box[None].to(x.device))[:, 0] >= self.overlap
            scores = preds["scores"].float() * near
            rows.append(scores.new_zeros(self.task.num_classes).scatter_reduce(0, preds["labels"], scores, "amax"))
        return torch.logit(torch.stack(rows), eps=1e-6)


class RegionScores(_Scores):
    """How much a segmentor sees each class in a region: the mean of its logits. `(B, C, H, W) -> (B, classes)`.

    Args:
        segmentor: A `visionattn.tasks.Segmentor` in evaluation mode.
        region: `(H, W)` bool, the pixels of the network's input that count.

    Raises:
        ValueError: If the region is empty or, later, not of the images' size.
    """

    def __init__(self, segmentor: Any, region: torch.Tensor) -> None:
        super().__init__(segmentor)
        if region.ndim != 2 or region.dtype != torch.bool or not region.any():
            raise ValueError(
                f"region must be (H, W) bool with at least one pixel, got {tuple(region.shape)} {region.dtype}"
            )
        self.region = region

    def scores(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[-2:] != self.region.shape:
            raise ValueError(
                f"region must have the size of the images, {tuple(x.shape[-2:])}, got {tuple(self.region.shape)}"
            )
        logits: torch.Tensor = self.task(x)
        return logits[:, :, self.region.to(x.device)].mean(-1)
