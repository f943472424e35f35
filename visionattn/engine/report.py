"""Plots of a run: learning curve, confusion matrix, precision-recall curve."""

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from visionattn.visualization import curves

from .metrics import TorchMetrics
from .scores import DetectionScores, SegmentationScores
from .units import FRACTION, MetricInfo

__all__ = ["draw_learning_curve", "draw_scores", "read_scalars"]


def read_scalars(work_dir: str | Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The logged training steps and evaluations of a run across resumptions; repeated steps count once.

    Returns:
        Training records (`iter`, `epoch`, `loss`, `lr`, ...) and evaluation records (`step`, metrics), each in order;
        NaN stands for what was no finite number.
    """
    train: list[dict[str, Any]] = []
    evaluations: list[dict[str, Any]] = []
    for path in sorted(Path(work_dir).glob("*/vis_data/scalars.json")):
        first = {id(train): True, id(evaluations): True}
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue  # the line that a kill cut short
            record = {key: math.nan if value is None else value for key, value in record.items()}
            records = train if "loss" in record else evaluations
            if first.pop(id(records), False):  # what was logged beyond the checkpoint that this start resumed from
                records[:] = _before(records, record["step"])
            records.append(record)
    return train, evaluations


def _before(records: list[dict[str, Any]], step: float) -> Iterator[dict[str, Any]]:
    return itertools.takewhile(lambda record: record["step"] < step, records)


def draw_learning_curve(work_dir: str | Path, metric: MetricInfo | str | None) -> Path | None:
    """Draws training losses, learning rate and a metric over the epochs into `learning_curve.png`.

    Args:
        work_dir: Folder of the run.
        metric: The evaluation metric to draw, by name if its direction and unit are not known; or none.

    Returns:
        The picture's path; none if nothing was logged.
    """
    train, evaluations = read_scalars(work_dir)
    if not train:
        return None
    info = MetricInfo(metric) if isinstance(metric, str) else metric
    # Where an epoch ended is known for the last record of each; steps in between are placed by share.
    last_step = train[-1]["step"]
    axis, length = ("epoch", max(train[-1]["epoch"], 1)) if "epoch" in train[-1] else ("iteration", last_step)
    at = [record["step"] / last_step * length for record in train]
    parts = [key for key in train[-1] if key.startswith(("loss_", "aux_loss"))]
    names = ["loss", *(parts if len(parts) > 1 else [])]
    percent = info is not None and info.unit == FRACTION
    factor = 100 if percent else 1
    points = [(r["step"], factor * r[info.name]) for r in evaluations if info.name in r] if info else []
    return curves.draw_learning_curve(
        {name: [(when, r[name]) for when, r in zip(at, train, strict=True) if name in r] for name in names},
        [(when, record["lr"]) for when, record in zip(at, train, strict=True) if "lr" in record],
        {info.name: points} if info and points else {},
        Path(work_dir) / "learning_curve.png",
        axis=axis,
        higher_is_better=info is None or info.better != "less",
        unit="%" if percent else info.unit if info else "",
    )


def draw_scores(evaluator_metrics: Iterable[Any], folder: str | Path, classes: Sequence[str]) -> list[Path]:
    """Draws the plots behind the numbers of an evaluation that has just been run.

    A confusion matrix for classification (where a `MulticlassConfusionMatrix` is among the scores) and segmentation,
    precision over recall for detection. Pictures that are there already stay: the new ones get a number.

    Args:
        evaluator_metrics: Metrics of an evaluator; those that are no `TorchMetrics` are passed over.
        folder: Where the pictures go.
        classes: Names of the classes.

    Returns:
        Their paths.
    """
    pictures = []
    for metrics in evaluator_metrics:
        metric: Any
        for name, metric in (metrics.metrics if isinstance(metrics, TorchMetrics) else {}).items():
            stem = name.replace("/", "_")
            if isinstance(metric, DetectionScores):
                pictures.append(
                    _precision_recall(metric, classes, _unused(Path(folder) / f"precision_recall_{stem}.png"))
                )
            elif isinstance(metric, SegmentationScores):
                path = _unused(Path(folder) / f"confusion_{stem}.png")
                pictures.append(curves.draw_confusion(metric.confusion.numpy(), classes, path))
            elif type(metric).__name__ == "MulticlassConfusionMatrix":
                path = _unused(Path(folder) / f"{stem}.png")
                pictures.append(curves.draw_confusion(metric.confmat.cpu().numpy(), classes, path))
    return pictures


def _precision_recall(metric: DetectionScores, classes: Sequence[str], path: Path) -> Path:
    """Each class at IoU 0.5, and the mean over the classes at two thresholds."""
    known = (metric.precision[0] > -1).all(0)
    precision = metric.precision[:, :, known].numpy()
    names = [classes[number] for number in torch.tensor(metric.classes)[known].tolist()]
    means = {f"mean, IoU {0.5 + 0.05 * i:.2f}": precision[i].mean(-1) for i in (0, 5)} if names else {}
    return curves.draw_precision_recall(precision[0].T, means, names, path)


def _unused(path: Path) -> Path:
    """The path, numbered if such a file exists already: plots of other evaluations are kept."""
    names = itertools.chain([path], (path.with_stem(f"{path.stem}-{number}") for number in itertools.count(2)))
    return next(name for name in names if not name.exists())
