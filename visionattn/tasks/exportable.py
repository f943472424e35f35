"""torchvision's detectors in a form that torch.export and ONNX support: whole batches, tensors of fixed size.

Their own postprocessing goes through the pictures of a batch one by one and keeps as many boxes as it happens to find,
which no exporter can follow. Here everything has room for as many as there can be, and says which of it counts.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import nms, roi_align

from ._features import pad_to_multiple
from .detector import Detector, PaddedBatch

__all__ = ["OUTPUTS", "ExportableDetector"]

OUTPUTS = ("boxes", "scores", "labels", "valid", "masks")


class ExportableDetector(nn.Module):
    """A detector with everything up to its boxes, for pictures of one size.

    `(B, C, H, W)`, normalised, -> `boxes` `(B, N, 4)` float32, left, top, right, bottom in pixels; `scores` `(B, N)`,
    descending; `labels` `(B, N)` class numbers; `valid` `(B, N)`, which of the N are there; and, from Mask R-CNN,
    `masks` `(B, N, 28, 28)`, the probability of the object in its box. What is not valid is zero. N is
    `detections_per_img`.

    The numbers are those of the detector's own postprocessing: the same thresholds, candidates and suppression.

    Args:
        task: Its weights are used, not copied; with float16 ones boxes and scores are float32 all the same.
        size: Height and width of the pictures.

    Raises:
        ValueError: If it is not one of torchvision's detectors that the package knows.
    """

    anchors: torch.Tensor

    def __init__(self, task: Detector, size: tuple[int, int]) -> None:
        super().__init__()
        detector: Any = task.detector
        if not isinstance(detector, (FCOS, RetinaNet, FasterRCNN)):
            raise ValueError(
                f"a detector of type {type(detector).__name__} cannot be exported, only FCOS, RetinaNet, FasterRCNN "
                "and MaskRCNN can"
            )
        self.detector = detector
        self.size, self.divisor = size, task.divisor
        self.dtype = next(task.parameters()).dtype
        self.two_stages = isinstance(detector, FasterRCNN)
        self.names = OUTPUTS if task.with_masks else OUTPUTS[:4]
        generator = detector.rpn.anchor_generator if self.two_stages else detector.anchor_generator
        example = pad_to_multiple(torch.zeros(1, task.in_chans, *size, dtype=self.dtype), self.divisor)
        with torch.no_grad():
            maps = [m.float() for m in detector.backbone(example).values()]
        (anchors,) = generator(ImageList(example.float(), [size]), maps)
        self.register_buffer("anchors", anchors.clone(), persistent=False)
        per_place = generator.num_anchors_per_location()
        self.counts = [m.shape[-2] * m.shape[-1] * n for m, n in zip(maps, per_place, strict=True)]

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        maps = self.detector.backbone(pad_to_multiple(x, self.divisor))
        return self._two_stages(maps) if self.two_stages else self._one_stage(list(maps.values()))

    def reference(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The same by torchvision's own postprocessing, which this must equal; in eager mode only."""
        batch = PaddedBatch(pad_to_multiple(x, self.divisor), [self.size] * len(x))
        found = [self._filled(one) for one in self.detector(batch)]
        return tuple(torch.stack(parts) for parts in zip(*found, strict=True))

    def _filled(self, found: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        owner = self.detector.roi_heads if self.two_stages else self.detector
        count = len(found["scores"])
        found = {**found, "labels": found["labels"] - self.detector.first_class}
        found["valid"] = torch.ones(count, dtype=torch.bool)
        if "masks" in found:
            found["masks"] = found["masks"][:, 0]
        parts = [found[name] for name in self.names]
        return [torch.cat([part, part.new_zeros(owner.detections_per_img - count, *part.shape[1:])]) for part in parts]

    def _one_stage(self, maps: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        detector = self.detector
        outputs = detector.head(maps)
        scores = outputs["cls_logits"].sigmoid()
        if isinstance(detector, FCOS):
            scores = (scores * outputs["bbox_ctrness"].sigmoid()).sqrt()
        classes = scores.shape[-1]
        decode = detector.box_coder.decode if isinstance(detector, FCOS) else detector.box_coder.decode_single
        found = []
        for part, deltas, anchors in self._levels(scores, outputs["bbox_regression"]):
            part = part.flatten(1)
            best, index = part.topk(min(detector.topk_candidates, part.shape[1]))
            boxes = _decoded(decode, deltas, anchors, index // classes)
            found.append((boxes, best, index % classes))
        boxes, scores, labels = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
        valid = scores > detector.score_thresh
        return self._suppress(self._clipped(boxes), scores, labels, valid, detector.nms_thresh, self._most(scores))

    def _two_stages(self, maps: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        proposals, there = self._propose(list(maps.values()))
        heads = self.detector.roi_heads
        features = heads.box_head(self._pooled(heads.box_roi_pool, maps, proposals))
        logits, deltas = heads.box_predictor(features)
        batch, count = there.shape
        scores = logits.softmax(-1)[:, 1:]
        classes = scores.shape[1]
        boxes = heads.box_coder.decode_single(deltas, proposals.flatten(0, 1)).reshape(-1, classes + 1, 4)[:, 1:]
        boxes = self._clipped(boxes.reshape(batch, count * classes, 4))
        scores = scores.reshape(batch, count * classes)
        labels = torch.arange(classes, device=scores.device).repeat(count).expand_as(scores)
        valid = there.repeat_interleave(classes, 1) & (scores > heads.score_thresh) & _at_least(boxes, 1e-2)
        found = self._suppress(boxes, scores, labels, valid, heads.nms_thresh, self._most(scores))
        if not heads.has_mask():
            return found
        boxes, _, labels, valid = found
        features = heads.mask_head(self._pooled(heads.mask_roi_pool, maps, boxes))
        masks = heads.mask_predictor(features).sigmoid()
        number = (labels.flatten() + self.detector.first_class)[:, None, None, None]
        chosen = masks.gather(1, number.expand(-1, 1, *masks.shape[-2:])).reshape(*labels.shape, *masks.shape[-2:])
        return *found, chosen * valid[..., None, None]

    def _propose(self, maps: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Proposals, `(B, P, 4)`, and which of them are valid."""
        rpn = self.detector.rpn
        objectness, deltas = rpn.head(maps)
        flat = torch.cat([o.permute(0, 2, 3, 1).flatten(1) for o in objectness], 1)
        sides = [d.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3) for d in deltas]
        found = []
        for level, (part, some, anchors) in enumerate(self._levels(flat, torch.cat(sides, 1))):
            best, index = part.topk(min(rpn.pre_nms_top_n(), part.shape[1]))
            boxes = _decoded(rpn.box_coder.decode_single, some, anchors, index)
            found.append((boxes, best.sigmoid(), torch.full_like(index, level)))
        boxes, scores, levels = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
        boxes = self._clipped(boxes)
        valid = _at_least(boxes, rpn.min_size) & (scores >= rpn.score_thresh)
        most = min(rpn.post_nms_top_n(), scores.shape[1])
        boxes, _, _, valid = self._suppress(boxes, scores, levels, valid, rpn.nms_thresh, most)
        return boxes, valid

    def _levels(self, values: torch.Tensor, deltas: torch.Tensor) -> Any:
        """The outputs, deltas and anchors of each level of the pyramid."""
        return zip(
            values.split(self.counts, 1), deltas.split(self.counts, 1), self.anchors.split(self.counts), strict=True
        )

    def _most(self, scores: torch.Tensor) -> int:
        """The maximum number of objects in an image."""
        owner = self.detector.roi_heads if self.two_stages else self.detector
        return min(owner.detections_per_img, scores.shape[1])

    def _clipped(self, boxes: torch.Tensor) -> torch.Tensor:
        height, width = self.size
        limits = (width, height, width, height)
        sides = [side.clamp(0, limit) for side, limit in zip(boxes.unbind(-1), limits, strict=True)]
        return torch.stack(sides, -1)

    def _suppress(
        self,
        boxes: torch.Tensor,
        scores: torch.Tensor,
        groups: torch.Tensor,
        valid: torch.Tensor,
        threshold: float,
        most: int,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Non-maximum suppression within the groups of each picture, and the best of what is left.

        All pictures go through it at once: moved apart, to the right by group and down by picture, they do not overlap.
        """
        span = max(self.size) + 1
        rows = torch.arange(boxes.shape[0], device=boxes.device)[:, None].expand_as(groups)
        offset = torch.stack([groups, rows], -1).to(boxes.dtype) * span
        apart = (boxes + torch.cat([offset, offset], -1)).flatten(0, 1)
        # Two boxes that nothing can suppress: exporters let lists be of any length only from two on.
        far = apart.new_tensor([[-2.0, -2.0, -1.0, -1.0], [-4.0, -4.0, -3.0, -3.0]])
        (candidates,) = torch.cat([valid.flatten(), valid.new_ones(2)]).nonzero(as_tuple=True)
        ranks = torch.cat([scores.flatten(), scores.new_full((2,), -1.0)])[candidates]
        kept = candidates[nms(torch.cat([apart, far])[candidates], ranks, threshold)]
        left = torch.zeros_like(valid).flatten()
        left = torch.cat([left, left.new_zeros(2)]).index_fill(0, kept, True)[:-2].view_as(valid)
        best, order = torch.where(left, scores, -1.0).topk(most)
        there = best >= 0
        boxes = boxes.gather(1, order[..., None].expand(-1, -1, 4)) * there[..., None]
        return boxes, best.clamp(min=0), groups.gather(1, order) * there, there

    def _pooled(self, pool: Any, maps: dict[str, torch.Tensor], boxes: torch.Tensor) -> torch.Tensor:
        """Features of `(B, P, 4)` boxes, `(B * P, C, h, w)`, each from the level that suits its size."""
        chosen: Sequence[torch.Tensor] = [maps[name].float() for name in pool.featmap_names]
        flat = boxes.flatten(0, 1)
        rows = torch.arange(boxes.shape[0], device=boxes.device, dtype=boxes.dtype)
        regions = torch.cat([rows.repeat_interleave(boxes.shape[1])[:, None], flat], 1)
        levels = pool.map_levels([flat])
        pooled = regions.new_zeros(flat.shape[0], chosen[0].shape[1], *pool.output_size)
        for level, (features, scale) in enumerate(zip(chosen, pool.scales, strict=True)):
            (index,) = (levels == level).nonzero(as_tuple=True)
            part = roi_align(features, regions[index], pool.output_size, scale, pool.sampling_ratio)
            pooled = pooled.index_copy(0, index, part)
        return pooled.to(self.dtype)


def _decoded(decode: Any, deltas: torch.Tensor, anchors: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Boxes `(B, k, 4)` of the chosen places."""
    some = deltas.gather(1, index[..., None].expand(-1, -1, 4))
    return decode(some.flatten(0, 1), anchors[index.flatten()]).view_as(some)


def _at_least(boxes: torch.Tensor, side: float) -> torch.Tensor:
    """Which boxes have sides of at least a number of pixels."""
    return ((boxes[..., 2:] - boxes[..., :2]) >= side).all(-1)
