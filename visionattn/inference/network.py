"""Trained networks by name, file, or config and checkpoint: how each prepares a picture, and what it predicts.

Only what a network needs is imported: a classifier by name does without mmengine, detectors, decoders and metrics.
"""

import difflib
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from torch import nn

from visionattn.checkpoints import packaged_path, read_weights
from visionattn.models import check_state_dict
from visionattn.utils.files import read_checkpoint
from visionattn.utils.resources import config_dir, read_manifest
from visionattn.visualization.colours import Colour

__all__ = ["Network", "Sample", "load_network"]

Sample = dict[str, Any]
_WEIGHT_SUFFIXES = (".bin", ".pt", ".pth", ".safetensors")
_MOST_PIXELS = 1 << 25  # of an enlarged picture


@dataclass(frozen=True)
class Network:
    """A trained network, ready to predict.

    Args:
        task: `classification`, `detection` or `segmentation`.
        classes: A name for each of its outputs.
        prepare: Turns a picture `(H, W, 3)` uint8 RGB and its name into a sample: `inputs`, `(3, h, w)`, the picture's
            `size`, and what else `predict` needs.
        predict: Turns samples whose inputs have one size into a prediction each: probabilities `(classes,)`; a dict of
            `boxes`, `labels`, `scores` and perhaps `masks`; or class numbers `(H, W)`.
        colours: Colours of the classes of pixels, if its data set has some.
        class_ids: Category ids of the classes in its data set, if it has some.
    """

    task: str
    classes: tuple[str, ...]
    prepare: Callable[[np.ndarray, str], Sample]
    predict: Callable[[list[Sample]], Sequence[Any]]
    colours: Sequence[Colour] | None = None
    class_ids: Sequence[int] | None = None


def load_network(
    model: Any,
    checkpoint: str | Path | None = None,
    device: str | torch.device = "cpu",
    classes: Sequence[str] | None = None,
) -> Network:
    """Loads a network.

    Args:
        model: The name of a published checkpoint (`va_resnet10n_cbam.digits`) or of a pretrained network of timm's; a
            published file; a config, its path or its packaged name; or a classifier of timm's.
        checkpoint: Weights for a config, or in place of the published ones for a named network.
        device: Where to compute.
        classes: Names of the classes; without it those that the checkpoint knows, or else numbers.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If there is no such network or device, or the weights are damaged or do not fit.
    """
    device = _device(device)
    if isinstance(model, nn.Module):
        if checkpoint is not None:
            raise ValueError("checkpoint must be left out for a model that is given as a module: load it beforehand")
        return _classifier(model, device, classes)
    if not isinstance(model, (str, Path)) or _is_config(str(model)):
        return _from_config(model, checkpoint, device, classes)
    name = str(model)
    if Path(name).suffix in _WEIGHT_SUFFIXES:
        raise ValueError(
            f"{name} does not say which network it is of: give the network's name or config, and it as the checkpoint"
        )
    entry = read_manifest().get(name)
    if entry is not None and entry["task"] != "classification":
        weights = packaged_path(name) if checkpoint is None else checkpoint
        return _from_config(entry["config"], weights, device, classes or entry["input"]["label_names"])
    return _classifier(_create(name, checkpoint), device, classes)


def _device(device: str | torch.device) -> torch.device:
    try:
        wanted = torch.device(device)
        torch.empty(0, device=wanted)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {str(device)!r} cannot be used: {reason}") from error
    return wanted


def _is_config(name: str) -> bool:
    root = config_dir()
    wanted = name.removesuffix(".py")
    return name.endswith(".py") or any(
        wanted in (path.stem, path.relative_to(root).with_suffix("").as_posix()) for path in root.glob("[!_]*/*.py")
    )


def _create(name: str, checkpoint: str | Path | None) -> nn.Module:
    """A classifier of timm's with its published weights, or with those of a file."""
    model = name.partition(".")[0]
    if ":" not in name and not timm.is_model(model):
        known = [*timm.list_models(), *read_manifest()]
        close = difflib.get_close_matches(name, known)
        hint = f"did you mean {' or '.join(close)}?" if close else "timm.list_models('va_*') lists ours"
        raise ValueError(f"no network {name!r}; {hint}")
    if checkpoint is None:
        try:
            if ":" not in name and not timm.get_pretrained_cfg(name).has_weights:
                raise ValueError(f"there are no published weights of {name}: give a checkpoint")
            return timm.create_model(name, pretrained=True)
        except RuntimeError as error:  # such as an unknown tag
            raise ValueError(f"cannot load {name}: {str(error).splitlines()[0]}") from error
    weights = read_weights(checkpoint)
    if any(key.startswith("backbone.") for key in weights):
        weights = {key.removeprefix("backbone."): value for key, value in weights.items()}
    cfg = timm.get_pretrained_cfg(name)
    head = weights.get(f"{cfg.classifier}.weight") if cfg is not None else None
    network = timm.create_model(name, pretrained=False, **({} if head is None else {"num_classes": len(head)}))
    try:
        check_state_dict(weights, network)
    except ValueError as error:
        raise ValueError(f"{checkpoint} does not fit {name}: {error}") from error
    network.load_state_dict(weights, strict=False)
    names = _dataset_meta(checkpoint).get("classes") or network.pretrained_cfg.get("label_names")
    if names is not None and len(names) != network.num_classes:
        names = None
    network.pretrained_cfg = {**network.pretrained_cfg, "label_names": names, "tag": None}
    return network


def _classifier(model: nn.Module, device: torch.device, classes: Sequence[str] | None) -> Network:
    """A classifier of timm's, whose configuration says how pictures are prepared."""
    model = model.eval().to(device)
    settings = timm.data.resolve_model_data_config(model)
    channels = settings["input_size"][0]
    if channels != 3:
        raise ValueError(f"{type(model).__name__} takes pictures of {channels} channels; prediction gives it 3 (RGB)")
    transform = timm.data.create_transform(**settings)
    shorter = None
    if settings["crop_mode"] == "center":
        shorter = math.ceil(max(settings["input_size"][1:]) / settings["crop_pct"])

    def prepare(image: np.ndarray, name: str) -> Sample:
        inputs = transform(Image.fromarray(_trimmed(image, name, shorter)))
        return {"inputs": inputs, "size": image.shape[:2]}

    def predict(samples: list[Sample]) -> torch.Tensor:
        return model(torch.stack([sample["inputs"] for sample in samples]).to(device)).float().softmax(-1)

    names = classes or model.pretrained_cfg.get("label_names") or _imagenet_names(model)
    return Network("classification", _class_names(names, model.num_classes), prepare, predict)


def _from_config(
    config: Any, checkpoint: str | Path | None, device: torch.device, classes: Sequence[str] | None
) -> Network:
    """The network of a config with the weights of a training checkpoint or a published file."""
    from visionattn.data.pipeline import Pipeline
    from visionattn.engine.config import load_config

    if checkpoint is None:
        raise ValueError(f"a config needs a checkpoint, and there is none for {config}")
    config = load_config(config, register=False) if isinstance(config, (str, Path)) else config
    task = _build_task(config)
    task.load_weights(read_weights(checkpoint))
    task.eval().to(device)
    transforms = _transforms(config)
    pipeline = Pipeline(transforms)
    shorter = max((np.max(t["max_size"]) for t in transforms if t["type"] == "SmallestMaxSize"), default=None)

    def prepare(image: np.ndarray, name: str) -> Sample:
        size = image.shape[:2]
        inputs = pipeline(_trimmed(image, name, shorter) if task.kind == "classification" else image)
        sample = {"size": tuple(inputs.shape[1:]), "original": {"size": size}, "original_size": size}
        return {"inputs": inputs, "size": size, "data_samples": sample}

    def predict(samples: list[Sample]) -> Sequence[Any]:
        parts = {name: [sample[name] for sample in samples] for name in ("inputs", "data_samples")}
        batch = task.data_preprocessor(parts)
        if task.kind == "classification":
            return task(batch["inputs"]).float().softmax(-1)
        return [result["preds"] for result in task(**batch, mode="predict")]

    meta = _dataset_meta(checkpoint)
    names = _class_names(classes or meta.get("classes"), task.num_classes)
    ids = meta.get("class_ids")
    ids = ids if ids is not None and len(ids) == len(names) else None
    return Network(task.kind, names, prepare, predict, _colours(meta.get("palette"), len(names)), ids)


def _build_task(config: Any) -> Any:
    """The model of a config, importing no other task and none of what training alone needs."""
    from mmengine.registry import MODELS
    from mmengine.utils import import_modules_from_strings

    from visionattn import tasks

    custom = config.get("custom_imports") or {}
    others = [name for name in custom.get("imports", ()) if name.partition(".")[0] != "visionattn"]
    import_modules_from_strings(others, custom.get("allow_failed_imports", False))
    model = {**config.model, "data_preprocessor": config.get("data_preprocessor")}
    model["backbone"] = {**model["backbone"], "pretrained": False}  # all weights are in the checkpoint
    if model["type"] in tasks.__all__:
        getattr(tasks, model["type"])  # registers it
    return MODELS.build(model)


def _transforms(config: Any) -> list[dict[str, Any]]:
    """The test pipeline of a config, also where data sets are joined."""
    dataset = (config.get("test_dataloader") or {}).get("dataset") or {}
    while "pipeline" not in dataset:
        inner = dataset.get("dataset") or next(iter(dataset.get("datasets") or ()), None)
        if inner is None:
            raise ValueError("the config's test_dataloader.dataset has no pipeline to prepare a picture by")
        dataset = inner
    return list(dataset["pipeline"])


def _trimmed(image: np.ndarray, name: str, shorter: int | None) -> np.ndarray:
    """The middle of a picture so long and narrow that enlarging its shorter side to so many pixels takes gigabytes."""
    height, width = image.shape[:2]
    if shorter is None:
        return image
    room = max(_MOST_PIXELS * min(height, width) // shorter**2, min(height, width))
    if max(height, width) <= room:
        return image
    top, left = max(height - room, 0) // 2, max(width - room, 0) // 2
    image = image[top : top + room, left : left + room]
    warnings.warn(
        f"{name} is {width}x{height} pixels, too narrow to be enlarged as a whole: the class is that of the "
        f"{image.shape[1]}x{image.shape[0]} pixels in its middle",
        stacklevel=1,
    )
    return image


def _class_names(names: Sequence[str] | None, count: int) -> tuple[str, ...]:
    """A name for each output; numbers where there are none."""
    names = tuple(map(str, names or ()))
    if names and len(names) != count:
        warnings.warn(
            f"the network has {count} outputs, but there are {len(names)} class names: outputs without a name are "
            "shown as numbers",
            stacklevel=1,
        )
    return (*names[:count], *map(str, range(len(names), count)))


def _imagenet_names(model: nn.Module) -> Sequence[str] | None:
    """What the outputs of a network with weights of ImageNet are called; timm's tags say of which set of classes."""
    tag = model.pretrained_cfg.get("tag") or ""
    subset = timm.data.infer_imagenet_subset(model)
    if subset is None or not any(f"in{count}" in tag for count in ("1k", "12k", "21k", "22k")):
        return None
    return timm.data.ImageNetInfo(subset).label_descriptions()


def _dataset_meta(checkpoint: str | Path) -> Mapping[str, Any]:
    """What a training checkpoint says of its data set."""
    meta = read_checkpoint(checkpoint).get("meta")
    found = meta.get("dataset_meta") if isinstance(meta, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _colours(palette: Any, count: int) -> list[Colour] | None:
    if palette is None or len(palette) < count:
        return None
    return [(int(red), int(green), int(blue)) for red, green, blue in palette[:count]]
