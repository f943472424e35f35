"""Recognises which networks a weight file may belong to."""

import re
from collections.abc import Iterator
from typing import Any

import timm

from visionattn.models import CONVERTERS
from visionattn.utils.resources import read_manifest

from .layout import StateDict

__all__ = ["candidates"]


def candidates(state_dict: StateDict, file: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Networks that weights may belong to, with their arguments; those named by the file come first.

    Args:
        state_dict: The flat weights, in any format.
        file: The file's name.
    """
    for entry in read_manifest().values():
        if entry["file"] == file and entry["task"] == "classification":
            yield entry["model"], entry.get("arguments", {})
    families: dict[str, list[str]] = {}
    for name in CONVERTERS:
        families.setdefault(timm.model_entrypoint(name).__module__, []).append(name)
    # Those of published weights first: where arguments change no shape, nothing else tells of them.
    variants: dict[str, list[dict[str, Any]]] = {}
    for entry in read_manifest().values():
        variants.setdefault(entry["model"], []).append(entry.get("arguments", {}))
    for names in families.values():
        if any(_share(state_dict, name) > 0.3 for name in _hosts(names)):
            yield from ((name, given) for name in names for given in (*variants.get(name, ()), {}))


def _hosts(names: list[str]) -> list[str]:
    """One network of a family for each distinct set of keys; networks that differ in size only are equivalent."""
    words = [re.sub(r"(?<!v)\d+", "", name).split("_")[1:] for name in names]
    which = 0 if len({first for first, *_ in words}) > 1 else 1
    first: dict[str, str] = {}
    for word, name in zip(words, names, strict=True):
        first.setdefault((*word, "")[which], name)
    return list(first.values())


def _share(state_dict: StateDict, name: str) -> float:
    """The share of the weights' keys that the network has after conversion, ignoring indices."""
    network = timm.create_model(name, device="meta")
    try:
        native = CONVERTERS[name](dict(state_dict), network)
    except (ValueError, KeyError, TypeError):
        return 0.0
    own = {re.sub(r"\d+", "0", key) for key in network.state_dict()}
    return sum(re.sub(r"\d+", "0", key) in own for key in native) / len(native) if native else 0.0
