"""A summary in a few lines when training has ended."""

from pathlib import Path
from typing import Any

from mmengine.runner import EpochBasedTrainLoop

from .checkpoint import AtomicCheckpointHook
from .finite import FiniteLossHook
from .report import draw_learning_curve, read_scalars
from .units import MetricInfo

__all__ = ["training_summary"]


def training_summary(runner: Any, seconds: float) -> dict[str, str]:
    """Draws the learning curve of a finished run and reports its scores.

    Args:
        runner: That has trained.
        seconds: How long it took.

    Returns:
        Lines by their headings: `trained`, `score` if the run was evaluated, `skipped` if pictures or steps were,
        `picture`, and `weights`: the best ones, or the last where none are kept.
    """
    checkpoint = _hook(runner, AtomicCheckpointHook)
    metric = checkpoint.metric if checkpoint is not None else None
    lines = {"trained": _duration(seconds)}
    if metric is not None and (score := _score(runner, metric)):
        lines["score"] = score
    if skipped := _skipped(runner, _hook(runner, FiniteLossHook)):
        lines["skipped"] = skipped
    if picture := draw_learning_curve(runner.work_dir, metric):
        lines["picture"] = _short(picture)
    info = runner.message_hub.runtime_info
    best, kept = info.get("best_checkpoint"), info.get("kept_checkpoints")
    if weights := best or (kept or [None])[-1]:
        lines["weights"] = _short(Path(runner.work_dir) / weights)
    return lines


def _hook(runner: Any, kind: type) -> Any:
    return next((hook for hook in runner.hooks if isinstance(hook, kind)), None)


def _score(runner: Any, metric: MetricInfo) -> str | None:
    points = [(r["step"], r[metric.name]) for r in read_scalars(runner.work_dir)[1] if metric.name in r]
    if not points:
        return None
    text = f"{metric.name} {metric.format(points[-1][1])} at the end"
    if best := metric.best(points):
        unit = "epoch" if isinstance(runner.train_loop, EpochBasedTrainLoop) else "iteration"
        text += f", {metric.format(best[1])} at best ({unit} {best[0]})"
    return text


def _skipped(runner: Any, finite: FiniteLossHook | None) -> str | None:
    parts = []
    loaders = {"training": runner.train_dataloader}
    if runner.val_loop is not None:
        loaders["evaluation"] = runner.val_dataloader
    for name, loader in loaders.items():
        if unreadable := _unreadable(loader.dataset):
            parts.append(f"{unreadable} pictures of the {name} set that cannot be read (named in the log)")
    if finite is not None and finite.skipped:
        parts.append(f"{finite.skipped} steps whose loss or gradients were not finite")
    return "; ".join(parts) or None


def _unreadable(dataset: Any) -> int:
    """The unreadable files of a data set, or of its joined parts."""
    if joined := getattr(dataset, "datasets", None):
        return sum(map(_unreadable, joined))
    return getattr(dataset, "skipped", 0) or (_unreadable(dataset.dataset) if hasattr(dataset, "dataset") else 0)


def _short(path: Path) -> str:
    """Relative to the current folder where it lies in it."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
