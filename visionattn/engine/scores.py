"""Metrics of detectors and segmentors, whose predictions are too large to be kept for the whole data set."""

import math
from typing import Any

import torch
from mmengine.registry import Registry
from torchmetrics import Metric
from torchmetrics.detection import MeanAveragePrecision
from torchmetrics.functional.classification import multiclass_confusion_matrix

__all__ = ["SCORES", "DetectionScores", "PictureMetric", "SegmentationScores"]

# Open to files of one's own: torchmetrics' metrics, or `PictureMetric`s, which keep a digest of each picture only.
SCORES = Registry("score", scope="visionattn")

# Places among the evaluator's numbers.
_STATS = {0: "map", 1: "map_50", 2: "map_75", 3: "map_small", 4: "map_medium", 5: "map_large", 8: "mar_100"}


class PictureMetric(Metric):
    """A metric that reduces each image to a small digest, from which the result is computed at the end.

    All its states are lists; a picture's digest is what the picture adds to them.
    """

    def digest(self, preds: Any, target: Any) -> dict[str, list[Any]]:
        """The digest of one image."""
        self.reset()
        self.update([preds], [target])
        state = {name: list(values) for name, values in self.metric_state.items()}
        self.reset()
        return state

    def absorb(self, digests: list[dict[str, list[Any]]]) -> None:
        """Sets the images' digests as its state."""
        self.reset()
        for digest in digests:
            for name, values in digest.items():
                getattr(self, name).extend(values)


@SCORES.register_module()
class DetectionScores(PictureMetric, MeanAveragePrecision):
    """COCO's average precision of boxes or masks, computed in one run of faster-coco-eval.

    Gives `map` (over IoU 0.50 to 0.95), `map_50`, `map_75`, `map_small`, `map_medium`, `map_large`, `mar_100` and the
    average precision of each class, `ap/<class>`; NaN where there is nothing to find. `precision` then holds the
    curves, `(10 IoU, 101 recalls, classes)` with -1 for such, and `classes` the class numbers in it.

    Predictions are dicts of `scores`, `labels` and, as `iou_type` says, `boxes` `(N, 4)` or `masks` `(N, H, W)`;
    targets too, without scores, with `iscrowd` and `area`. Without an area, or with 0, that of the box or mask counts.

    Args:
        iou_type: `bbox` or `segm`.
    """

    precision: torch.Tensor
    classes: list[int]

    def __init__(self, iou_type: str = "bbox", **kwargs: Any) -> None:
        if iou_type not in ("bbox", "segm"):
            raise ValueError(f"iou_type must be 'bbox' or 'segm', got {iou_type!r}")
        kind: Any = iou_type
        # Given here so that no config can set what compute() doesn't read.
        super().__init__(
            iou_type=kind,
            iou_thresholds=None,
            rec_thresholds=None,
            max_detection_thresholds=None,
            class_metrics=False,
            extended_summary=False,
            average="macro",
            backend="faster_coco_eval",
            **kwargs,
        )
        self.warn_on_many_detections = False

    def compute(self) -> dict[str, Any]:
        """The scores by name."""
        from faster_coco_eval import COCO, COCOeval_faster

        labels = [*self.groundtruth_labels, *self.detection_labels]
        self.classes = torch.cat(labels).unique().tolist() if labels else []
        truth = self._in_coco_format("groundtruth", "iscrowd", self.groundtruth_crowds)
        for annotation, area in zip(truth["annotations"], _join(self.groundtruth_area), strict=True):
            annotation["area"] = area if area > 0 else annotation["area"]
        found = self._in_coco_format("detection", "score", self.detection_scores)
        evaluator = COCOeval_faster(COCO(truth), COCO(found), *self.iou_type)
        evaluator.run()
        self.precision = torch.tensor(evaluator.eval["precision"][..., 0, -1])
        ap = {}
        for number, values in zip(self.classes, self.precision.unbind(-1), strict=True):
            known = values[values > -1]
            ap[number] = known.mean() if known.numel() else torch.tensor(math.nan)
        # COCO's -1 is no score.
        stats = torch.tensor(evaluator.stats, dtype=torch.float32)
        stats = stats.where(stats >= 0, math.nan)
        return {name: stats[place] for place, name in _STATS.items()} | {"ap": ap}

    def _in_coco_format(self, part: str, attribute: str, values: list[torch.Tensor]) -> dict[str, list[dict[str, Any]]]:
        """All `groundtruth` or `detection` objects as the evaluator takes them, with one more attribute."""
        from faster_coco_eval.core import mask

        shapes: list[Any]
        labels = getattr(self, f"{part}_labels")
        images: list[dict[str, Any]] = [{"id": number} for number in range(len(labels))]
        if "segm" in self.iou_type:
            outlines = getattr(self, f"{part}_mask")
            for image, found in zip(images, outlines, strict=True):
                image["height"], image["width"] = found[0][0] if found else (0, 0)
            shape = "segmentation"
            shapes = [{"size": size, "counts": runs} for found in outlines for size, runs in found]
            areas = mask.area(shapes)
        else:
            shape = "bbox"
            shapes = _join([boxes.reshape(-1, 4) for boxes in getattr(self, f"{part}_box")])
            areas = [box[2] * box[3] for box in shapes]
        places = [number for number, objects in enumerate(labels) for _ in range(len(objects))]
        columns = zip(places, _join(labels), areas, shapes, _join(values), strict=True)
        annotations = [
            {"id": number, "image_id": place, "category_id": label, "area": area, shape: outline, attribute: value}
            for number, (place, label, area, outline, value) in enumerate(columns, 1)  # 0 would stand for no match
        ]
        categories = [{"id": number} for number in self.classes]
        return {"images": images, "annotations": annotations, "categories": categories}


@SCORES.register_module()
class SegmentationScores(PictureMetric):
    """Overlap of predicted and true masks, counted over all pixels of all pictures.

    Gives `miou` (intersection over union), `macc` (share of a class's pixels that were found) and `mdice`, means over
    the classes that occur; `accuracy`, the share of all pixels that are right; and `iou/<class>`, `acc/<class>` and
    `dice/<class>`, without those that do not occur. `confusion` then holds the pixels, `(true, predicted)`.

    Predictions and targets are `(H, W)` class numbers.

    Args:
        num_classes: How many classes the network predicts.
        ignore_index: Value of target pixels that do not count.

    Raises:
        ValueError: If there are fewer than two classes; later, if a prediction or a mask holds others.
    """

    full_state_update = False
    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    confusion: torch.Tensor
    counts: Any  # a list of tensors, or the one that the processes gathered

    def __init__(self, num_classes: int, ignore_index: int = 255, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.add_state("counts", default=[], dist_reduce_fx="cat")

    def update(self, preds: list[torch.Tensor], target: list[torch.Tensor]) -> None:
        """Counts the pixels of pictures: rows of (true class, predicted class, pixels)."""
        for pred, true in zip(preds, target, strict=True):
            if pred.shape != true.shape:
                raise ValueError(f"prediction of {tuple(pred.shape)} pixels for a mask of {tuple(true.shape)}")
            self._check_range("prediction", pred)
            self._check_range("mask", true[true != self.ignore_index])
            matrix = multiclass_confusion_matrix(
                pred.long().flatten(), true.long().flatten(), self.num_classes, ignore_index=self.ignore_index
            )
            pairs = matrix.nonzero()
            self.counts.append(torch.cat([pairs, matrix[tuple(pairs.T)][:, None]], dim=1))

    def _check_range(self, what: str, classes: torch.Tensor) -> None:
        if classes.numel() and not 0 <= int(classes.min()) <= int(classes.max()) < self.num_classes:
            wrong = int(classes.max()) if int(classes.max()) >= self.num_classes else int(classes.min())
            raise ValueError(
                f"a {what} holds class {wrong}, but num_classes of SegmentationScores is {self.num_classes} "
                f"(ignore_index={self.ignore_index})"
            )

    def compute(self) -> dict[str, Any]:
        """The scores by name."""
        self.confusion = torch.zeros(self.num_classes, self.num_classes, dtype=torch.int64)
        for rows in self.counts:
            self.confusion[rows[:, 0], rows[:, 1]] += rows[:, 2]
        hit = self.confusion.diag().double()
        true, predicted = self.confusion.sum(1).double(), self.confusion.sum(0).double()
        iou, acc, dice = hit / (true + predicted - hit), hit / true, 2 * hit / (true + predicted)
        means = {
            "miou": iou.nanmean(),
            "macc": acc.nanmean(),
            "mdice": dice.nanmean(),
            "accuracy": hit.sum() / true.sum(),
        }
        by_class = {"iou": iou, "acc": acc, "dice": dice}
        return means | {
            name: {number: value for number, value in enumerate(values) if not value.isnan()}
            for name, values in by_class.items()
        }


def _join(parts: list[torch.Tensor]) -> list[Any]:
    return torch.cat(parts).tolist() if parts else []
