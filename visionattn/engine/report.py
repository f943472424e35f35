"""What a person wants after a training run: the learning curve as a picture."""

import json
from pathlib import Path
from typing import Any

from visionattn._files import replacing

__all__ = ["draw_learning_curve", "read_scalars"]


def read_scalars(work_dir: str | Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The logged training steps and evaluations of a run, over all its resumptions; what was run again counts once.

    Returns:
        Training records (`iter`, `epoch`, `loss`, `lr`, ...) and evaluation records (`step`, metrics), each in order.
    """
    train: dict[int, dict[str, Any]] = {}
    evaluations: dict[int, dict[str, Any]] = {}
    for path in sorted(Path(work_dir).glob("*/vis_data/scalars.json")):
        for line in path.read_text().splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue  # the line that a kill cut short
            if "loss" in record:
                train[record["step"]] = record
            else:
                evaluations[record["step"]] = record
    return [train[step] for step in sorted(train)], [evaluations[step] for step in sorted(evaluations)]


def draw_learning_curve(work_dir: str | Path, metric: str) -> Path | None:
    """Draws training loss, learning rate and a metric over the epochs into `learning_curve.png`.

    Args:
        work_dir: Folder of the run.
        metric: Name of the evaluation metric to draw.

    Returns:
        The picture's path; none if nothing was logged.
    """
    train, evaluations = read_scalars(work_dir)
    if not train:
        return None
    from matplotlib.figure import Figure

    # Where an epoch ended is known for the last record of each; steps in between are placed by share.
    last_step = train[-1]["step"]
    epochs = max(train[-1].get("epoch", 1), 1)
    at = [record["step"] / last_step * epochs for record in train]
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(at, [record["loss"] for record in train], color="tab:blue", label="training loss")
    left.set(xlabel="epoch", ylabel="training loss")
    rate = left.twinx()
    rate.plot(
        at, [record.get("lr", float("nan")) for record in train], color="tab:gray", linestyle=":", label="learning rate"
    )
    rate.set_ylabel("learning rate")
    left.legend(handles=[*left.lines, *rate.lines], loc="upper right")
    points = [(record["step"], record[metric]) for record in evaluations if metric in record]
    if points:
        steps, values = zip(*points, strict=True)
        right.plot(steps, values, color="tab:green", marker="o", markersize=3)
        best = max(points, key=lambda point: point[1])
        right.annotate(f"{best[1]:.4f}", best, xytext=(0, -14), textcoords="offset points", ha="center")
    right.set(xlabel="epoch", ylabel=f"{metric} on the evaluation set")
    right.grid(alpha=0.3)
    path = Path(work_dir) / "learning_curve.png"
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)
    return path
