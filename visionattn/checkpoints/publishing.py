"""Publishing trained networks: one file each with everything needed to rebuild, use and evaluate it."""

import copy
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from visionattn.models import check_state_dict
from visionattn.models.modifications import apply_modifications
from visionattn.profiling.cost import count_macs
from visionattn.utils.files import replacing, sha256
from visionattn.utils.published import check_name, is_network, published_in, read_facts
from visionattn.utils.quantization import BITS, pack
from visionattn.utils.resources import checkpoint_dir, read_manifest
from visionattn.utils.state_dict import check_finite
from visionattn.version import __version__

from .files import write_published

__all__ = ["manifest_entry", "publish"]

# Of a config's `model`, what says where weights came from or how it ran: not what it is.
_NOT_OF_THE_TASK = ("data_preprocessor", "compile", "init_cfg", "start_from")
_NOT_OF_THE_NETWORK = (
    *("model_name", "num_classes", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay"),
    "grad_checkpointing",
)
# The fields of a manifest's entry that a file states itself.
_ENTRY = (
    *("model", "tag", "task", "dataset", "metrics", "reported_by", "config", "command", "license", "origin", "format"),
    *("arguments", "params", "macs", "input"),
)


def publish(
    model: nn.Module,
    name: str,
    folder: str | Path,
    *,
    classes: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
    input_size: tuple[int, int, int],
    facts: dict[str, Any],
    bits: int = 32,
    allow_nonfinite: bool = False,
) -> Path:
    """Writes a trained network as `<model>-<tag>-<sha256>.safetensors`, which `build` and timm load by name.

    A file of the same name in the folder is replaced. If the folder has a `manifest.json`, the file is entered into it.

    Args:
        model: The trained timm network, with what `attach` put in; or with `task_config` the whole task.
        name: `<model>.<tag>`, such as `va_resnet10n_cbam.my_photos`.
        folder: Where the file goes; it is found by name in ./checkpoints and where VISIONATTN_CHECKPOINTS points.
        classes: Names of the classes.
        mean: Of the channels, for pixels in 0..1.
        std: Of the channels, for pixels in 0..1.
        input_size: Channels, height and width the network was trained for.
        facts: What else the file shall say. Needed: `task`, `dataset`, `metrics`, `license`, `origin`. If known:
            `arguments` of timm.create_model, `config`, `command`, `interpolation`, `crop_pct`, `crop_mode`, `palette`;
            of a config `preprocessor`, `pipeline` and, for a whole task, `task_config` (its `model`).
            `visionattn.utils.published` tells what they mean.
        bits: 32 keeps the weights as they are, 8 rounds matrices and kernels to a quarter of the size, 4 to an eighth.
        allow_nonfinite: Whether weights may be infinite or not a number.

    Returns:
        The file's path.

    Raises:
        ValueError: If the name is not of this form, is taken by the package, its model is not registered or is another
            network, a plug-in has no name to rebuild it by, weights are not finite, or `bits` is none of these.
    """
    if bits not in (*BITS, 32):
        raise ValueError(f"bits must be 4, 8 or 32, got {bits}")
    architecture, tag = check_name(name)
    folder = Path(folder)
    if not timm.is_model(architecture):
        raise ValueError(f"name must be <registered model>.<tag>, but timm knows no model {architecture!r}")
    if name in read_manifest() and folder.resolve() != checkpoint_dir().resolve():
        raise ValueError(f"{name} is one of the packaged checkpoints; choose another tag than {tag!r}")
    state_dict = model.state_dict()
    if not allow_nonfinite:
        check_finite(state_dict, f"the network to publish as {name}")
    statement = _statement(model, architecture, tag, facts)
    statement["input"] = {
        "num_classes": len(classes),
        "label_names": list(classes),
        "input_size": list(input_size),
        "mean": list(mean),
        "std": list(std),
        "interpolation": facts.get("interpolation", "bilinear"),
        "crop_pct": facts.get("crop_pct", 1.0),
        "crop_mode": facts.get("crop_mode", "center"),
    }
    statement["params"] = sum(parameter.numel() for parameter in model.parameters())
    statement["macs"] = count_macs(copy.deepcopy(model).to("meta"), input_size)
    _check_rebuilds(_as_json(statement), state_dict)
    stored = state_dict if bits == 32 else pack(state_dict, bits)
    path = write_published(stored, statement, folder, f"{architecture}-{tag}")
    if (folder / "manifest.json").is_file():
        _enter(folder / "manifest.json", name, path)
    # Last, so that there is one of them at any time.
    for other, old in list(published_in(folder)):
        if other == name and old != path:
            old.unlink(missing_ok=True)
    return path


def manifest_entry(path: Path) -> dict[str, Any]:
    """The manifest entry for a published file in the manifest's folder."""
    facts = read_facts(path) or {}
    entry = {key: facts[key] for key in _ENTRY if key in facts and (key != "arguments" or facts[key])}
    size = {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256(path)}
    return {**entry, **size, "sources": [{"kind": "packaged"}]}


def _statement(model: nn.Module, architecture: str, tag: str, facts: dict[str, Any]) -> dict[str, Any]:
    """The metadata that describes the network of a file, except for images and sizes."""
    statement = {
        "name": f"{architecture}.{tag}",
        "model": architecture,
        "tag": tag,
        "task": facts["task"],
        "dataset": facts["dataset"],
        "metrics": {key: value for key, value in facts["metrics"].items() if math.isfinite(value)},
        "reported_by": "this package",
        **{key: facts.get(key) for key in ("config", "command", "license", "origin")},
        "format": "native",
        "versions": {"visionattn": __version__, "torch": torch.__version__, "timm": timm.__version__},
        **{key: facts[key] for key in ("preprocessor", "pipeline", "palette") if facts.get(key) is not None},
    }
    if is_network(facts):
        arguments = facts.get("arguments", {})
        elsewhere = (*_NOT_OF_THE_NETWORK, "modifications")
        statement["arguments"] = {k: v for k, v in arguments.items() if k not in elsewhere}
        statement["modifications"] = getattr(model, "modifications", [])
    else:
        task = {key: value for key, value in facts["task_config"].items() if key not in _NOT_OF_THE_TASK}
        kept = ("num_classes",) if facts["task"] == "classification" else ()
        backbone = {k: v for k, v in task["backbone"].items() if k in kept or k not in _NOT_OF_THE_NETWORK}
        statement["task_config"] = {**task, "backbone": {"model_name": architecture, **backbone}}
    return statement


def _as_json(statement: dict[str, Any]) -> dict[str, Any]:
    """A value as it is read back from JSON: lists in place of tuples.

    Raises:
        ValueError: If something is not plain data.
    """
    for key, value in statement.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"cannot be published, because its {key} is not plain data: {value} ({error})") from error
    return json.loads(json.dumps(statement))


def _check_rebuilds(statement: dict[str, Any], state_dict: dict[str, torch.Tensor]) -> None:
    """Builds the network that the metadata describes, without weights, and compares.

    Raises:
        ValueError: If the weights would not fit.
    """
    with torch.device("meta"):
        if is_network(statement):
            classes = statement["input"]["num_classes"]
            network = timm.create_model(statement["model"], num_classes=classes, **statement["arguments"])
            rebuilt = apply_modifications(network, statement["modifications"])
        else:
            from visionattn.tasks import build_task

            rebuilt = build_task(statement)
    try:
        check_state_dict(state_dict, rebuilt)
    except ValueError as error:
        raise ValueError(
            f"{statement['name']} cannot be rebuilt from its name, arguments and modifications; {error}"
        ) from error


def _enter(manifest: Path, name: str, path: Path) -> None:
    content = json.loads(manifest.read_bytes())
    content["checkpoints"][name] = manifest_entry(path)
    content["checkpoints"] = dict(sorted(content["checkpoints"].items()))
    with replacing(manifest) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
