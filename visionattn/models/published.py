"""Resolves the weights of a `timm.create_model` call, and their arguments, modifications, classes and sizes.

By tag: one of the manifest, or one that the user has published (`visionattn.utils.published`), which is looked for when
asked. By file (`pretrained_cfg_overlay=dict(file=...)`): a published or converted one, a classifier's training
checkpoint, or one of an author.
"""

import dataclasses
from pathlib import Path
from typing import Any

import timm
from timm.models import PretrainedCfg, is_model_pretrained, resolve_pretrained_cfg

from visionattn.utils.files import read_checkpoint
from visionattn.utils.progress import download_bars
from visionattn.utils.published import Facts, find_published, is_network, read_facts
from visionattn.utils.resources import read_manifest
from visionattn.utils.state_dict import class_names, network_weights
from visionattn.utils.weight_files import obtain

__all__ = ["published_cfg", "with_checkpoint"]

# What a published file states of its pictures and classes.
_INPUT = ("num_classes", "label_names", "input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")
# Fields of timm's cfg that hold for the default tag's weights only.
_OTHERS = (
    "url",
    "state_dict",
    "hf_hub_id",
    "hf_hub_filename",
    "source",
    "label_names",
    "label_offset",
    "label_descriptions",
    "test_input_size",
    "test_crop_pct",
    "test_pool_size",
    "description",
    "notes",
)
_FOLDER_FILES = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")


def published_cfg(facts: Facts, path: Path) -> dict[str, Any]:
    """timm's cfg of a network with the weights of a published or converted file.

    Args:
        facts: What the file says of itself.
        path: The file.
    """
    base = timm.get_pretrained_cfg(facts["model"]) or PretrainedCfg(architecture=facts["model"])
    arguments = facts.get("arguments", {})
    stated: dict[str, Any] = {}
    if "num_classes" in arguments:
        stated["num_classes"] = arguments["num_classes"]
    if "in_chans" in arguments:
        stated["input_size"] = [arguments["in_chans"], *base.input_size[1:]]
    stated |= {key: value for key, value in facts.get("input", {}).items() if key in _INPUT}
    stated = {key: tuple(value) if isinstance(value, list) else value for key, value in stated.items()}
    fields = {
        **dict.fromkeys(_OTHERS),
        "custom_load": False,
        "file": str(path),
        "tag": facts.get("tag"),
        "license": facts.get("license"),
        **stated,
    }
    return dataclasses.replace(base, **fields).to_dict()


def with_checkpoint(name: str, pretrained: bool, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `timm.create_model`, completed by those of the requested weights.

    Args:
        name: Of one of our networks.
        pretrained: Whether its weights are wanted.
        kwargs: The caller's arguments, which take precedence.

    Raises:
        FileNotFoundError: If the file of weights is missing and can't be downloaded.
        ValueError: If there is no such tag, or the file is damaged or another network's.
    """
    tag, overlay = kwargs.get("pretrained_cfg"), kwargs.get("pretrained_cfg_overlay") or {}
    if pretrained and overlay.get("file"):
        return _with_file(name, Path(overlay["file"]), kwargs)
    if tag and isinstance(tag, str) and not is_model_pretrained(f"{name}.{tag}"):
        return _with_file(name, _published_file(f"{name}.{tag}"), kwargs)
    cfg = resolve_pretrained_cfg(name, tag, overlay)
    if cfg.source:  # hf-hub: and local-dir: bring their own arguments
        if pretrained and cfg.source == "local-dir":
            read_checkpoint(_weights_in(Path(cfg.file or "")))
        return kwargs
    entry = read_manifest().get(f"{name}.{cfg.tag}")
    other_weights = any(overlay.get(source) for source in ("url", "hf_hub_id", "state_dict"))
    if entry is None or other_weights or not (pretrained or tag):
        return kwargs
    kwargs = {**entry.get("arguments", {}), **kwargs}
    if not pretrained:
        return kwargs
    with download_bars() as bar:
        path = obtain(entry, bar(f"{name}.{cfg.tag}"))
    read_checkpoint(path)  # timm reads it again, but its errors don't say what is wrong with a file
    return {**kwargs, "pretrained_cfg_overlay": {**overlay, "file": str(path)}}


def _published_file(name: str) -> Path:
    path = find_published(name)
    if path is None:
        model = name.partition(".")[0]
        known = timm.list_pretrained(f"{model}.*")
        raise ValueError(
            f"no checkpoint {name!r}: neither packaged nor published in ./checkpoints or in the folder that "
            f"VISIONATTN_CHECKPOINTS names; of {model} there are: {', '.join(known) or 'none'}"
        )
    return path


def _with_file(name: str, path: Path, kwargs: dict[str, Any]) -> dict[str, Any]:
    facts = read_facts(path)
    checkpoint = read_checkpoint(path)
    if facts is None:
        return _with_sizes(name, path, checkpoint, kwargs)
    if facts["model"] != name:
        raise ValueError(f"{path} holds weights of {facts['model']}, not of {name}")
    if not is_network(facts):
        raise ValueError(
            f"{path} is a whole task ({facts['task']}), which timm does not build: tasks.from_checkpoint does"
        )
    return {
        **facts.get("arguments", {}),
        "modifications": facts.get("modifications", []),
        **kwargs,
        "pretrained_cfg": published_cfg(facts, path),
    }


def _with_sizes(name: str, path: Path, checkpoint: dict[str, Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """States the number of classes of a file with our keys; for other weights timm's assumption holds."""
    overlay = kwargs["pretrained_cfg_overlay"]
    cfg = resolve_pretrained_cfg(name, kwargs.get("pretrained_cfg"), overlay)
    head = network_weights(checkpoint, str(path)).get(f"{cfg.classifier}.weight")
    if head is None or "num_classes" in overlay:
        return kwargs
    labels = class_names(checkpoint)
    labels = labels if labels and len(labels) == len(head) else None
    return {**kwargs, "pretrained_cfg_overlay": {"num_classes": len(head), "label_names": labels, **overlay}}


def _weights_in(folder: Path) -> Path:
    """The weight file that timm takes from a folder."""
    found = [folder / name for name in _FOLDER_FILES if (folder / name).is_file()]
    found += sorted(folder.glob("*.safetensors"))
    if not found:
        raise FileNotFoundError(f"no weights in {folder}: there is neither {' nor '.join(_FOLDER_FILES)}")
    return found[0]
