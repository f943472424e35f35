"""A run in pictures: the learning curve, the confusion matrix, precision over recall."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from visionattn.visualization import curves

from .metrics import TorchMetrics
from .scores import DetectionScores, SegmentationScores

__all__ = ["draw_learning_curve", "draw_scores", "read_scalars"]


def read_scalars(work_dir: str | Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The logged training steps and evaluations of a run, over all its resumptions; what was run again counts once.

    Returns:
        Training records (`iter`, `epoch`, `loss`, `lr`, ...) and evaluation records (`step`, metrics), each in order.
    """
    train: dict[int, dict[str, Any]] = {}
    evaluations: dict[int, dict[str, Any]] = {}
    for path in sorted(Path(work_dir).glob("*/vis_data/scalars.json")):
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue  # the line that a kill cut short
            if "loss" in record:
                train[record["step"]] = record
            else:
                evaluations[record["step"]] = record
    return [train[step] for step in sorted(train)], [evaluations[step] for step in sorted(evaluations)]


def draw_learning_curve(
    work_dir: str | Path, metric: str, *, higher_is_better: bool = True, unit: str = ""
) -> Path | None:
    """Draws training losses, learning rate and a metric over the epochs into `learning_curve.png`.

    Args:
        work_dir: Folder of the run.
        metric: Name of the evaluation metric to draw.
        higher_is_better: Which value of the metric is the best.
        unit: Of the metric.

    Returns:
        The picture's path; none if nothing was logged.
    """
    train, evaluations = read_scalars(work_dir)
    if not train:
        return None
    # Where an epoch ended is known for the last record of each; steps in between are placed by share.
    last_step = train[-1]["step"]
    axis, length = ("epoch", max(train[-1]["epoch"], 1)) if "epoch" in train[-1] else ("iteration", last_step)
    at = [record["step"] / last_step * length for record in train]
    parts = [key for key in train[-1] if key.startswith(("loss_", "aux_loss"))]
    names = ["loss", *(parts if len(parts) > 1 else [])]
    return curves.draw_learning_curve(
        {name: [(when, r[name]) for when, r in zip(at, train, strict=True) if name in r] for name in names},
        [(when, record["lr"]) for when, record in zip(at, train, strict=True) if "lr" in record],
        {metric: points} if (points := [(r["step"], r[metric]) for r in evaluations if metric in r]) else {},
        Path(work_dir) / "learning_curve.png",
        axis=axis,
        higher_is_better=higher_is_better,
        unit=unit,
    )


def draw_scores(evaluator_metrics: Iterable[Any], folder: str | Path, classes: Sequence[str]) -> list[Path]:
    """Draws what stands behind the numbers of an evaluation that has just been run.

    A confusion matrix for classification (where a `MulticlassConfusionMatrix` is among the scores) and segmentation,
    precision over recall for detection.

    Args:
        evaluator_metrics: Metrics of an evaluator; those that are no `TorchMetrics` are passed over.
        folder: Where the pictures go.
        classes: Names of the classes.

    Returns:
        Their paths.
    """
    pictures = []
    for metrics in evaluator_metrics:
        for name, metric in (metrics.metrics if isinstance(metrics, TorchMetrics) else {}).items():
            stem = name.replace("/", "_")
            if isinstance(metric, DetectionScores):
                pictures.append(_precision_recall(metric, classes, Path(folder) / f"precision_recall_{stem}.png"))
            elif isinstance(metric, SegmentationScores):
                path = Path(folder) / f"confusion_{stem}.png"
                pictures.append(curves.draw_confusion(metric.confusion.numpy(), classes, path))
            elif type(metric).__name__ == "MulticlassConfusionMatrix":
                path = Path(folder) / f"{stem}.png"
                pictures.append(curves.draw_confusion(metric.confmat.cpu().numpy(), classes, path))
    return pictures


def _precision_recall(metric: DetectionScores, classes: Sequence[str], path: Path) -> Path:
    """Each class at IoU 0.5, and the mean over the classes at two thresholds."""
    known = (metric.precision[0] > -1).all(0)
    precision = metric.precision[:, :, known].numpy()
    names = [classes[number] for number in torch.tensor(metric.classes)[known].tolist()]
    means = {f"mean, IoU {0.5 + 0.05 * i:.2f}": precision[i].mean(-1) for i in (0, 5)} if names else {}
    return curves.draw_precision_recall(precision[0].T, means, names, path)
