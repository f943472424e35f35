"""What a person wants after a run as pictures: the learning curve, confusion matrices, precision and recall."""

import itertools
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from visionattn.utils.files import replacing

from .metric_info import MetricInfo
from .metrics import TorchMetrics
from .scores import DetectionScores, SegmentationScores

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_learning_curve", "draw_scores", "read_scalars"]


def read_scalars(work_dir: str | Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The logged training steps and evaluations of a run, over all its resumptions; what was run again counts once.

    Returns:
        Training records (`iter`, `epoch`, `loss`, `lr`, ...) and evaluation records (`step`, metrics), each in order;
        NaN stands for what was no finite number.
    """
    train: list[dict[str, Any]] = []
    evaluations: list[dict[str, Any]] = []
    for path in sorted(Path(work_dir).glob("*/vis_data/scalars.json")):
        first = {id(train): True, id(evaluations): True}
        for line in path.read_text().splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue  # the line that a kill cut short
            record = {key: math.nan if value is None else value for key, value in record.items()}
            records = train if "loss" in record else evaluations
            if first.pop(id(records), False):  # what was logged beyond the checkpoint that this start resumed from
                records[:] = itertools.takewhile(lambda earlier, step=record["step"]: earlier["step"] < step, records)
            records.append(record)
    return train, evaluations


def draw_learning_curve(work_dir: str | Path, metric: MetricInfo | str | None) -> Path | None:
    """Draws training loss, learning rate and a metric over the epochs into `learning_curve.png`.

    Args:
        work_dir: Folder of the run.
        metric: The evaluation metric to draw, by name if it isn't known which of its values are better; or none.

    Returns:
        The picture's path; none if nothing was logged.
    """
    train, evaluations = read_scalars(work_dir)
    if not train:
        return None
    metric = MetricInfo(metric) if isinstance(metric, str) else metric
    # Where an epoch ended is known for the last record of each; steps in between are placed by share.
    last_step = train[-1]["step"]
    unit, length = ("epoch", max(train[-1]["epoch"], 1)) if "epoch" in train[-1] else ("iteration", last_step)
    at = [record["step"] / last_step * length for record in train]
    figure = _figure(10, 4)
    left, right = figure.subplots(1, 2)
    left.plot(at, [record["loss"] for record in train], color="tab:blue", label="training loss")
    left.set(xlabel=unit, ylabel="training loss")
    rate = left.twinx()
    rate.plot(
        at, [record.get("lr", float("nan")) for record in train], color="tab:gray", linestyle=":", label="learning rate"
    )
    rate.set_ylabel("learning rate")
    left.legend(handles=[*left.lines, *rate.lines], loc="upper right")
    points = [(r["step"], r[metric.name]) for r in evaluations if metric.name in r] if metric else []
    if points:
        right.plot(*zip(*points, strict=True), color="tab:green", marker="o", markersize=3)
        if best := metric.best(points):
            right.annotate(metric.format(best[1]), best, xytext=(0, -14), textcoords="offset points", ha="center")
        right.set_ylabel(f"{metric.name} on the evaluation set")
    right.set_xlabel(unit)
    right.grid(alpha=0.3)
    return _save(figure, Path(work_dir) / "learning_curve.png")


def draw_scores(evaluator_metrics: Iterable[Any], folder: str | Path, classes: Sequence[str]) -> list[Path]:
    """Draws what stands behind the numbers of an evaluation that has just been run.

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
        for name, metric in (metrics.metrics if isinstance(metrics, TorchMetrics) else {}).items():
            stem = name.replace("/", "_")
            if isinstance(metric, DetectionScores):
                figure = _precision_recall(metric, classes)
                pictures.append(_save(figure, _unused(Path(folder) / f"precision_recall_{stem}.png")))
            elif isinstance(metric, SegmentationScores):
                figure = _confusion(metric.confusion, classes)
                pictures.append(_save(figure, _unused(Path(folder) / f"confusion_{stem}.png")))
            elif type(metric).__name__ == "MulticlassConfusionMatrix":
                figure = _confusion(metric.confmat, classes)
                pictures.append(_save(figure, _unused(Path(folder) / f"{stem}.png")))
    return pictures


def _confusion(matrix: torch.Tensor, classes: Sequence[str]) -> "Figure":
    """Rows are true classes, each in shares of its own size."""
    shares = matrix.double() / matrix.sum(1, keepdim=True).clamp(min=1)
    side = min(4 + 0.35 * len(classes), 20)
    figure = _figure(side + 1, side)
    axes = figure.subplots()
    picture = axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(picture, label="share of the true class", shrink=0.8)
    axes.set(xlabel="predicted", ylabel="true")
    if len(classes) <= 40:
        axes.set_xticks(range(len(classes)), classes, rotation=90)
        axes.set_yticks(range(len(classes)), classes)
    if len(classes) <= 20:
        for row, column in (shares >= 0.005).nonzero().tolist():
            share = shares[row, column]
            colour = "white" if share > 0.5 else "black"
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=colour, fontsize=8)
    return figure


def _precision_recall(metric: DetectionScores, classes: Sequence[str]) -> "Figure":
    """Each class at IoU 0.5, and the mean over the classes at several."""
    figure = _figure(7, 5)
    axes = figure.subplots()
    recall = torch.linspace(0, 1, metric.precision.shape[1]).numpy()
    known = (metric.precision[0] > -1).all(0)
    curves = metric.precision[:, :, known]
    if curves.shape[-1]:
        for number, curve in zip(torch.tensor(metric.classes)[known].tolist(), curves[0].unbind(-1), strict=True):
            label = classes[number] if curves.shape[-1] <= 20 else None
            axes.plot(recall, curve.numpy(), linewidth=1, alpha=0.6, label=label)
        for index, style in ((0, "-"), (5, "--")):
            threshold = 0.5 + 0.05 * index
            axes.plot(
                recall, curves[index].mean(-1).numpy(), f"k{style}", linewidth=2, label=f"mean, IoU {threshold:.2f}"
            )
        axes.legend(fontsize=8, ncols=2)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    return figure


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _unused(path: Path) -> Path:
    """The path, with a number if there is such a file already: what another evaluation has drawn stays."""
    names = itertools.chain([path], (path.with_stem(f"{path.stem}-{number}") for number in itertools.count(2)))
    return next(name for name in names if not name.exists())


def _save(figure: "Figure", path: Path) -> Path:
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    return path
