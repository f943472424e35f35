"""Trained networks by name, file, or config and checkpoint.

Only what a network needs is imported: a classifier does without detectors, decoders and metrics, and one that says
nothing of its task without mmengine.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from visionattn.checkpoints import build
from visionattn.models import check_state_dict
from visionattn.utils.building import did_you_mean
from visionattn.utils.config_files import SCOPE, find_config
from visionattn.utils.files import read_checkpoint
from visionattn.utils.locate import find_checkpoint, is_file_name, locate
from visionattn.utils.published import Facts, list_published
from visionattn.utils.resources import config_dir, read_manifest
from visionattn.utils.state_dict import StateDict, class_names, network_weights, unwrap

from .network import Network, from_module, from_task

__all__ = ["load_network"]


def load_network(
    model: Any,
    checkpoint: str | Path | None = None,
    device: str | torch.device = "cpu",
    classes: Sequence[str] | None = None,
) -> Network:
    """Loads a network.

    Args:
        model: A published checkpoint by name (`va_resnet10n_cbam.digits`), file, `hf-hub:ORG/NAME` or
            `local-dir:FOLDER`; the name of a network of timm's; a config, its path or its packaged name; or a
            classifier of timm's as a module.
        checkpoint: Weights for a config, or in place of the published ones for a named network: a file or a name.
        device: Where to compute.
        classes: Names of the classes; without it those that the checkpoint knows, or else numbers.

    Raises:
        FileNotFoundError: If a file is missing or can't be downloaded.
        ValueError: If there is no such network or device, or the weights are damaged or do not fit.
    """
    device = _device(device)
    if isinstance(model, nn.Module):
        if checkpoint is not None:
            raise ValueError("checkpoint must be left out for a model that is given as a module: load it beforehand")
        return from_module(model, device, classes)
    if not isinstance(model, (str, Path)) or _is_config(model):
        return _from_config(model, checkpoint, device, classes)
    facts = _facts(model)
    if checkpoint is not None:
        return _with_weights(str(model), facts, checkpoint, device, classes)
    if facts is None:
        return from_module(_from_timm(str(model)), device, classes)
    if _has_task(facts):
        from visionattn.tasks import from_checkpoint

        task, facts = from_checkpoint(model, device)
        return _from_published(task, facts, classes)
    return from_module(build(model), device, classes)


def _device(device: str | torch.device) -> torch.device:
    try:
        wanted = torch.device(device)
        torch.empty(0, device=wanted)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {str(device)!r} cannot be used: {reason}") from error
    return wanted


def _is_config(model: str | Path) -> bool:
    """Whether this names a config, and not a checkpoint or a timm network.

    Raises:
        ValueError: If it means none of these.
    """
    name = str(model)
    if name.endswith(".py") or name.startswith(SCOPE) or (config_dir() / f"{name}.py").is_file():
        return True
    if is_file_name(model) or ":" in name or timm.is_model(name.partition(".")[0]):
        return False
    try:
        find_config(name)
    except FileNotFoundError as error:
        meant = did_you_mean(name, {*timm.list_models(), *read_manifest(), *list_published()})
        otherwise = "; timm.list_models('va_*') lists ours"
        raise ValueError(f"no network {name!r}{meant or otherwise}") from error
    return True


def _facts(model: str | Path) -> Facts | None:
    """The metadata of a published checkpoint; empty for a network that only timm knows."""
    name = str(model)
    ours = name.startswith("va_") and "." in name
    if name.startswith("hf-hub:"):
        return find_checkpoint(name)[1]
    if not (is_file_name(model) or ours or name.startswith("local-dir:") or name in list_published()):
        return None
    _, facts = find_checkpoint(model)
    if facts is None:
        raise ValueError(
            f"{name} does not say which network it is of: give the network's name or config with it as checkpoint"
        )
    return facts


def _has_task(facts: Facts) -> bool:
    """Whether a checkpoint states how it was evaluated, and not only its network."""
    return "pipeline" in facts or facts.get("task", "classification") != "classification"


def _from_timm(name: str) -> nn.Module:
    try:
        cfg = None if ":" in name else timm.get_pretrained_cfg(name)
        if ":" not in name and not (cfg and cfg.has_weights):
            raise ValueError(f"there are no published weights of {name}: give a checkpoint")
        return timm.create_model(name, pretrained=True)
    except RuntimeError as error:  # such as an unknown tag
        raise ValueError(f"cannot load {name}: {str(error).splitlines()[0]}") from error


def _with_weights(
    name: str, facts: Facts | None, checkpoint: str | Path, device: torch.device, classes: Sequence[str] | None
) -> Network:
    """A named network with the weights of a file; a published file must be of that network."""
    path, found = locate(checkpoint)
    if found is not None:
        if found["model"] != (facts["model"] if facts else name.partition(".")[0]):
            raise ValueError(f"{checkpoint} holds weights of {found['model']}, not of {name}")
        return load_network(checkpoint, None, device, classes)
    content = read_checkpoint(path)
    weights = network_weights(content, str(path))
    width = _head_width(weights, name)
    try:
        if facts is not None and _has_task(facts):
            from visionattn.tasks import build_task

            known = facts.get("input", {})
            names = class_names(content) or known.get("label_names")
            if facts["task"] == "classification" and width is not None:
                facts = {**facts, "input": {**known, "num_classes": width}}
                names = _if_fitting(names, width)
            task = build_task(facts)
            task.load_weights(unwrap(content, str(path)))
            return _from_published(task.eval().to(device), {**facts, "input": {"label_names": names}}, classes)
        arguments: dict[str, Any] = {} if width is None else {"num_classes": width}
        network: Any = timm.create_model(name, pretrained=False, **arguments)
        check_state_dict(weights, network)
    except ValueError as error:
        raise ValueError(f"{checkpoint} does not fit {name}: {error}") from error
    network.load_state_dict(weights, strict=False)
    names = _if_fitting(class_names(content) or network.pretrained_cfg.get("label_names"), network.num_classes)
    network.pretrained_cfg = {**network.pretrained_cfg, "label_names": names, "tag": None}
    return from_module(network, device, classes)


def _head_width(weights: StateDict, name: str) -> int | None:
    """The number of classes of a classifier's weights, if they include its head."""
    cfg = timm.get_pretrained_cfg(name.partition(".")[0])
    head = None if cfg is None else weights.get(f"{cfg.classifier}.weight")
    return None if head is None else len(head)


def _if_fitting(names: Sequence[str] | None, count: int) -> Sequence[str] | None:
    return names if names is not None and len(names) == count else None


def _from_config(
    config: Any, checkpoint: str | Path | None, device: torch.device, classes: Sequence[str] | None
) -> Network:
    """The network of a config with the weights of a training checkpoint or a published file."""
    from visionattn.engine.config import load_config

    if checkpoint is None:
        raise ValueError(f"a config needs a checkpoint, and there is none for {config}")
    config = load_config(config, register=False) if isinstance(config, (str, Path)) else config
    task = _build_task(config)
    path, facts = locate(checkpoint)
    content = read_checkpoint(path)
    task.load_weights(unwrap(content, str(path)))
    task.eval().to(device)
    if facts is not None:
        return _from_published(task, {**facts, "pipeline": _transforms(config)}, classes)
    meta = content.get("meta")
    meta = meta.get("dataset_meta") if isinstance(meta, Mapping) else None
    meta = meta if isinstance(meta, Mapping) else {}
    return from_task(task, _transforms(config), {**meta, "classes": classes or meta.get("classes")})


def _from_published(task: Any, facts: Facts, classes: Sequence[str] | None) -> Network:
    names = classes or facts.get("input", {}).get("label_names")
    return from_task(task, facts.get("pipeline", []), {**facts, "classes": names})


def _build_task(config: Any) -> Any:
    """Builds the model of a config without importing other tasks or training code."""
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
    """The test pipeline of a config, also for joined data sets."""
    dataset = (config.get("test_dataloader") or {}).get("dataset") or {}
    while "pipeline" not in dataset:
        inner = dataset.get("dataset") or next(iter(dataset.get("datasets") or ()), None)
        if inner is None:
            raise ValueError("the config's test_dataloader.dataset has no pipeline to prepare a picture by")
        dataset = inner
    return list(dataset["pipeline"])
