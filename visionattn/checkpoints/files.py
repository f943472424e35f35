"""Files of weights that come from elsewhere or go there, with what they tell of themselves."""

import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import safe_open

from visionattn.models import CONVERTERS, unwrap
from visionattn.utils.files import read_checkpoint, replacing

from .layout import Layout, StateDict

__all__ = ["read_facts", "read_source", "save_as"]


def read_source(path: str | Path) -> tuple[StateDict, Layout]:
    """The flat weights in a file, and how it lays them out.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, holds code or holds no weights.
    """
    checkpoint = read_checkpoint(path)
    wrapper = next((key for key in ("state_dict", "model") if isinstance(checkpoint.get(key), dict)), None)
    entries = checkpoint[wrapper] if wrapper else checkpoint
    weights = unwrap(checkpoint)
    prefix = "module." if entries and all(key.startswith("module.") for key in entries) else ""
    if weights and all(key.startswith("backbone.") for key in weights):  # a classifier as it is trained here
        weights = {key.removeprefix("backbone."): value for key, value in weights.items()}
        prefix += "backbone."
    strays = [key for key, value in weights.items() if not isinstance(value, torch.Tensor)]
    if strays or not weights:
        raise ValueError(f"{path} holds no flat weights: {', '.join(strays[:3]) or 'nothing'} is no tensor")
    return weights, Layout.of(weights, wrapper, prefix)


def read_facts(path: str | Path) -> tuple[str | None, dict[str, Any], Layout | None]:
    """What a file written by `save` or `publish` tells of itself: network, its arguments, and its first layout."""
    if Path(path).suffix != ".safetensors":
        return None, {}, None
    with safe_open(path, "pt") as file:
        stored = file.metadata() or {}
    name = stored.get("name", "").partition(".")[0]
    layout = Layout.from_json(stored["layout"]) if "layout" in stored else None
    return name if name in CONVERTERS else None, json.loads(stored.get("arguments", "{}")), layout


def save_as(state_dict: StateDict, layout: Layout, path: str | Path) -> None:
    """Writes exported weights as a file of the layout: safetensors by the ending of its name, else as PyTorch does.

    Args:
        state_dict: The weights.
        layout: What stands around them.
        path: The file.
    """
    path = Path(path)
    entries = {f"{layout.prefix}{key}": value for key, value in state_dict.items()}
    with replacing(path) as temporary:
        if path.suffix == ".safetensors":
            safetensors.torch.save_file(entries, temporary)
        else:
            torch.save({layout.wrapper: entries} if layout.wrapper else entries, temporary)
