"""Tasks from published files: classifier, detector or segmentor as it was evaluated, with its weights."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from visionattn.models.modifications import apply_modifications
from visionattn.utils.files import read_checkpoint
from visionattn.utils.locate import locate
from visionattn.utils.published import Facts, is_network
from visionattn.utils.state_dict import check_finite, unwrap

from ._base import Task

__all__ = ["build_task", "from_checkpoint"]

# What a file may ask for: names that mmengine would look up anywhere are refused.
_TASKS = ("Classifier", "Detector", "Segmentor")
_PREPROCESSORS = ("ImgDataPreprocessor",)


def from_checkpoint(checkpoint: str | Path, device: str | torch.device = "cpu") -> tuple[Task, Facts]:
    """The task of a published checkpoint, with its weights and in evaluation mode.

    Args:
        checkpoint: A name `<model>.<tag>`, a published file, `hf-hub:ORG/NAME` or `local-dir:FOLDER`.
        device: Where it goes.

    Returns:
        The task, and what the file says of itself: classes (`facts["input"]["label_names"]`), `pipeline`, ...

    Raises:
        FileNotFoundError: If there is no such file, or it can't be downloaded.
        ValueError: If there is none of this name, it was not written by `publish`, or its weights do not fit.
    """
    path, facts = locate(checkpoint)
    if facts is None or "version" not in facts:
        raise ValueError(f"{checkpoint} was not written by `visionattn publish` and does not say what task it is for")
    task = build_task(facts)
    weights = unwrap(read_checkpoint(path), str(path))
    check_finite(weights, str(path))
    task.load_weights(weights)
    return task.eval().to(device), facts


def build_task(facts: Facts) -> Task:
    """The task that a published file describes, without its weights.

    Raises:
        ValueError: If it describes none, or asks for something that is not a task of this package.
    """
    preprocessor = dict(facts.get("preprocessor") or {})
    if preprocessor and preprocessor.get("type") not in _PREPROCESSORS:
        kind = preprocessor.get("type")
        raise ValueError(f"preprocessor's type must be one of {', '.join(_PREPROCESSORS)}, got {kind!r}")
    if is_network(facts):
        classes = facts["input"]["num_classes"]
        backbone = {"model_name": facts["model"], "num_classes": classes, **facts.get("arguments", {})}
        task = _task_class("Classifier")(backbone, data_preprocessor=preprocessor or None)
        task.backbone = apply_modifications(task.backbone, facts.get("modifications", ()))
        return task
    training = ("compile", "start_from")
    arguments: dict[str, Any] = {k: v for k, v in facts.get("task_config", {}).items() if k not in training}
    kind = arguments.pop("type", None)
    if kind not in _TASKS:
        raise ValueError(f"task_config's type must be one of {', '.join(_TASKS)}, got {kind!r}")
    name = arguments.get("backbone", {}).get("model_name")
    if name != facts["model"]:
        raise ValueError(f"task_config's backbone must be the {facts['model']} of the file's name, got {name!r}")
    try:
        return _task_class(kind)(**arguments, data_preprocessor=preprocessor or None)
    except TypeError as error:
        raise ValueError(f"cannot build {kind} from task_config: {error}") from error


def _task_class(kind: str) -> Callable[..., Task]:
    """The class of a task, imported on demand: each task has large dependencies."""
    return getattr(importlib.import_module(f"{__package__}.{kind.lower()}"), kind)
