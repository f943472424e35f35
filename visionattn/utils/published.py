"""Files written by `publish`: their metadata, and finding one by name.

A published file is a safetensors file with one more text in its header, a JSON object. It has the fields of an entry of
the manifest (checkpoints/manifest.schema.json) without those about where a file is, and

    version         of this description, 1
    name            <model>.<tag>
    arguments       of timm.create_model, beyond the number of classes
    modifications   what was done to the network then: [{"kind": "attach", "arguments": {...}}, ...]
    task_config     of detectors, segmentors and classifiers with a head or a front-end: the config's `model`
    preprocessor    the config's `data_preprocessor`
    pipeline        the config's test pipeline
    palette         colours of the classes, if the data set has some
    versions        of the packages it was made with

All of it is data; whoever builds from it looks names up in tables and imports nothing that it names.
"""

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .resources import user_folder
from .safetensors_header import read_metadata

__all__ = [
    "KEY",
    "VERSION",
    "check_name",
    "find_published",
    "is_network",
    "list_published",
    "published_in",
    "read_facts",
]

Facts = dict[str, Any]

_logger = logging.getLogger(__name__)

KEY = "visionattn"
VERSION = 1
# Arguments of timm.create_model that say where weights come from: a file of weights has no say in that.
_RESERVED = {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"}
_FIELDS = {
    "name": str,
    "model": str,
    "tag": str,
    "task": str,
    "arguments": dict,
    "modifications": list,
    "input": dict,
    "metrics": dict,
    "task_config": dict,
    "preprocessor": dict,
    "pipeline": list,
}


def check_name(name: str) -> tuple[str, str]:
    """Splits `<model>.<tag>` after checking that it can be a file's name.

    Raises:
        ValueError: If it is not of this form.
    """
    found = re.fullmatch(r"([A-Za-z0-9_]+)\.([A-Za-z0-9_]+)", name)
    if not found:
        raise ValueError(
            f"name must be <registered model>.<tag>, both of letters, digits and underscores, such as "
            f"va_resnet10n_cbam.my_photos, got {name!r}"
        )
    return found[1], found[2]


def is_network(facts: Facts) -> bool:
    """Whether a file is of a network that timm can build, and not of a whole task."""
    return facts.get("task", "classification") == "classification" and "task_config" not in facts


def read_facts(path: str | Path) -> Facts | None:
    """The metadata of a published or converted file; None for others, such as training checkpoints.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or what it says is malformed.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        return None
    text = read_metadata(path).get(KEY)
    if text is None:
        return None
    try:
        facts = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: what it says of itself is invalid JSON") from error
    _check_facts(facts, path)
    return facts


def _check_facts(facts: Any, path: Path) -> None:
    if not isinstance(facts, dict) or not isinstance(facts.get("model"), str):
        raise ValueError(f"{path} is damaged: it does not say of which model it is")
    if facts.get("version", VERSION) != VERSION:
        raise ValueError(f"{path} is of version {facts['version']!r}; this package reads version {VERSION}: update it")
    for name, kind in _FIELDS.items():
        if name in facts and not isinstance(facts[name], kind):
            raise ValueError(f"{path} is damaged: its {name} is a {type(facts[name]).__name__}, not a {kind.__name__}")
    if not re.fullmatch(r"[A-Za-z0-9_]+", facts["model"]):
        raise ValueError(f"{path} was refused: its model {facts['model']!r} is no name of a registered model")
    given = {**facts.get("arguments", {}), **_sub_dict(facts.get("task_config", {}), "backbone")}
    if reserved := sorted(given.keys() & _RESERVED):
        raise ValueError(f"{path} was refused: the network's arguments may not set {', '.join(reserved)}")
    if "name" in facts:
        classes, labels = (_sub_dict(facts, "input").get(key) for key in ("num_classes", "label_names"))
        if facts["name"] != f"{facts['model']}.{facts.get('tag')}" or "task" not in facts:
            raise ValueError(f"{path} is damaged: its name, model, tag and task do not belong together")
        if not isinstance(labels, list) or classes != len(labels) or not all(isinstance(name, str) for name in labels):
            raise ValueError(f"{path} is damaged: it has {classes} classes and does not name as many")


def _sub_dict(facts: Facts, key: str) -> dict[str, Any]:
    return found if isinstance(found := facts.get(key), dict) else {}


def published_in(folder: Path) -> Iterator[tuple[str, Path]]:
    """Names and paths of the published files in a folder, newest first; damaged ones are logged."""
    files = [path for path in folder.glob("[!.]*.safetensors") if path.is_file()]
    for path in sorted(files, key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            facts = read_facts(path)
        except (ValueError, OSError) as error:
            _logger.warning("ignored: %s", error)
            continue
        if facts and "name" in facts:
            yield facts["name"], path


def list_published() -> dict[str, Path]:
    """The user's published files by name: in ./checkpoints, and in the folder that VISIONATTN_CHECKPOINTS names.

    Both are looked into at every call. Of several files with one name the first folder's newest counts.

    Raises:
        ValueError: If VISIONATTN_CHECKPOINTS names no folder.
    """
    found: dict[str, Path] = {}
    for folder in (Path("checkpoints"), user_folder()):
        if folder is not None and folder.is_dir():
            for name, path in published_in(folder):
                found.setdefault(name, path)
    return dict(sorted(found.items()))


def find_published(name: str) -> Path | None:
    """The user's published file of a name `<model>.<tag>`, if there is one.

    Raises:
        ValueError: If VISIONATTN_CHECKPOINTS names no folder.
    """
    return list_published().get(name)
