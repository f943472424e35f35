"""A short config for one's own data, written by `visionattn train --data` and `visionattn init`."""

import pprint
from pathlib import Path
from typing import Any

import timm

from visionattn.data.discovery import DiscoveredData, discover
from visionattn.utils.files import replacing

from .config import check_network

__all__ = ["config_text", "write_config"]

_SMALL = 64  # pictures no larger than this are seen as they are


def write_config(
    path: str | Path,
    data: str | Path,
    model: str,
    *,
    task: str | None = None,
    pretrained: bool = False,
    split_dir: str | Path | None = None,
) -> DiscoveredData:
    """Recognises data, splits them if necessary, and writes a config that trains on them.

    Args:
        path: The config, a `.py` file.
        data: A folder or an annotation file, as `visionattn.data.discover` knows them.
        model: Name of a timm network.
        task: As for `discover`.
        pretrained: Whether the network starts from its pretrained weights.
        split_dir: Where a split that is made is written; beside the config by default.

    Raises:
        FileNotFoundError: If there is nothing at `data`.
        ValueError: If nothing is recognised there, or timm has no such network.
    """
    path = Path(path)
    if path.suffix != ".py":
        raise ValueError(f"a config is a Python file (.py), got {path}")
    check_network(model)
    found = discover(data, task, split_dir or path.parent)
    with replacing(path) as temporary:
        temporary.write_text(config_text(found, model, pretrained), encoding="utf-8")
    return found


def config_text(data: DiscoveredData, model: str, pretrained: bool = False) -> str:
    """The text of a config for data.

    Args:
        data: As `discover` found them.
        model: Name of a timm network.
        pretrained: Whether it starts from its pretrained weights.
    """
    count = len(data.classes)
    backbone = {"model_name": model, **({"pretrained": True} if pretrained else {})}
    settings: dict[str, Any] = {}
    if data.task == "classification":
        train, test, inputs = _classification(data, model)
        settings["model"] = {"backbone": {**backbone, "num_classes": count}}
        scores: dict[str, dict[str, Any]] = {name: {"num_classes": count} for name in ("top1", "confusion")}
        settings["data_preprocessor"] = inputs
    else:
        train, test = _dense(data)
        settings["model"] = {"backbone": backbone, "num_classes": count}
        scores = {"seg": {"num_classes": count}} if data.task == "segmentation" else {}
        if data.task == "instance":
            settings["model"]["detector"] = {"_delete_": True, "type": "MaskRCNN"}
            scores = {"segm": {"type": "DetectionScores", "iou_type": "segm"}}
    # Some steps an epoch even of few pictures, and never a batch larger than the data.
    batch = min(32 if data.task == "classification" else 4, max(data.counts["train"] // 8, 2))
    for split, pipeline in (("train", train), ("val", test), ("test", test)):
        settings[f"{split}_dataloader"] = {"dataset": _piped(data.datasets[split], pipeline)}
    settings["train_dataloader"] = {"batch_size": batch, **settings["train_dataloader"]}
    if not pretrained:  # a network that starts from scratch bears, and needs, a higher rate
        settings["optim_wrapper"] = {"optimizer": {"lr": 2e-3}}
    if scores:
        settings["val_evaluator"] = settings["test_evaluator"] = {"scores": scores}
    recipe = "detection" if data.task == "instance" else data.task
    lines = [
        f"# {data.path}: {data.layout}; {count} classes ({_some(data.classes)}), {data.counts['train']} pictures to",
        f"# train on and {data.counts['val']} to evaluate on ({data.split}), about {data.size[1]} x {data.size[0]} px.",
        f'_base_ = ["visionattn::_base_/own_data/{recipe}"]',
    ]
    lines += [f"{name} = {pprint.pformat(value, width=110, sort_dicts=False)}" for name, value in settings.items()]
    return "\n".join([*lines, ""])


def _classification(data: DiscoveredData, model: str) -> tuple[list[Any], list[Any], dict[str, Any]]:
    """Pipelines for training and evaluation, and the normalisation that the network's weights expect."""
    cfg = timm.get_pretrained_cfg(model)
    _, height, width = cfg.input_size if cfg is not None else (3, 224, 224)
    if max(data.size) <= _SMALL:
        height, width = (max(32, side) for side in data.size)
        test: list[dict[str, Any]] = [{"type": "Resize", "height": height, "width": width}]
        train = [*test, {"type": "Affine", "translate_percent": (-0.08, 0.08), "rotate": (-10, 10), "p": 1.0}]
    else:
        test = [
            {"type": "SmallestMaxSize", "max_size": round(max(height, width) / 0.875)},
            {"type": "CenterCrop", "height": height, "width": width},
        ]
        train = [
            {"type": "RandomResizedCrop", "size": (height, width), "scale": (0.2, 1.0)},
            {"type": "HorizontalFlip", "p": 0.5},
        ]
    mean, std = (cfg.mean, cfg.std) if cfg is not None else ((0.5,) * 3, (0.5,) * 3)
    inputs = {"mean": [round(255 * v, 3) for v in mean], "std": [round(255 * v, 3) for v in std]}
    return train, test, inputs


def _dense(data: DiscoveredData) -> tuple[list[Any], list[Any]]:
    """Pipelines for training and evaluation: images keep their aspect ratio and are hardly enlarged."""
    short = min(max(min(data.size), 64), 512)
    test = [{"type": "FitResize", "short": short, "long": 2 * short}]
    return [*test, {"type": "HorizontalFlip", "p": 0.5}], test


def _piped(config: dict[str, Any], pipeline: list[Any]) -> dict[str, Any]:
    """A data set's config with its pipeline; for joined data sets, in each part."""
    if "datasets" in config:
        return {**config, "datasets": [_piped(part, pipeline) for part in config["datasets"]]}
    return {**config, "pipeline": pipeline}


def _some(classes: tuple[str, ...]) -> str:
    shown = ", ".join(" ".join(name.split()) for name in classes[:6])
    return f"{shown}, ..." if len(classes) > 6 else shown
