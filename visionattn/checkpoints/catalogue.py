"""The checkpoints that the manifest names: what there is, and the weights."""

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import timm
import torch

from visionattn.models import CONVERTERS, check_state_dict, unwrap
from visionattn.utils.download import Progress
from visionattn.utils.files import read_checkpoint
from visionattn.utils.resources import checkpoint_dir, read_manifest
from visionattn.utils.weight_files import obtain

__all__ = ["info", "list", "load", "packaged_path", "path", "read_weights"]


def list(pattern: str = "*") -> tuple[str, ...]:
    """Names of the checkpoints, `<model>.<tag>`, that fit a pattern such as `va_resnet*`; a model stands for its tags.

    Raises:
        ValueError: If none fits.
    """
    names = tuple(name for name in read_manifest() if any(fnmatchcase(n, pattern) for n in (name, name.split(".")[0])))
    if not names:
        raise ValueError(f"no checkpoint fits {pattern!r}; visionattn.checkpoints.list() names them all")
    return names


def info(name: str) -> dict[str, Any]:
    """What the manifest says of a checkpoint; checkpoints/manifest.schema.json tells what the fields mean.

    Args:
        name: `<model>.<tag>`.

    Raises:
        ValueError: If there is none of this name.
    """
    manifest = read_manifest()
    if name not in manifest:
        near = [other for other in manifest if other.split(".")[0] == name.split(".")[0]]
        raise ValueError(
            f"no checkpoint {name!r}; "
            + (f"of this network there are: {', '.join(near)}" if near else "visionattn.checkpoints.list() names them")
        )
    return manifest[name]


def path(name: str, progress: Progress = lambda done, total: None) -> Path:
    """The file of a checkpoint, as its authors made it; fetched if it is not on this machine.

    Args:
        name: `<model>.<tag>`.
        progress: Told how many bytes have come, and of how many, if known.

    Raises:
        ValueError: If there is none of this name.
        FileNotFoundError: If it can't be had; the message says how a person gets it.
    """
    return obtain(info(name), progress)


def load(name: str) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint under our keys, fetched and converted if need be.

    Args:
        name: `<model>.<tag>`.

    Raises:
        ValueError: If there is none of this name, or it is damaged or does not fit its network.
        FileNotFoundError: If it can't be had; the message says how a person gets it.
    """
    entry, state_dict = info(name), read_weights(path(name))
    if entry["format"] == "native":
        return state_dict
    arguments = {
        **entry.get("arguments", {}),
        **({"num_classes": n} if (n := entry["input"].get("num_classes")) else {}),
    }
    model = timm.create_model(entry["model"], device="meta", **arguments)
    native = CONVERTERS[entry["model"]](state_dict, model)
    check_state_dict(native, model)
    return native


def packaged_path(name: str) -> Path:
    """The file of a packaged checkpoint.

    Args:
        name: `<model>.<tag>`.

    Raises:
        ValueError: If there is none of this name.
    """
    packaged = [n for n, entry in read_manifest().items() if {"kind": "packaged"} in entry["sources"]]
    if name not in packaged:
        raise ValueError(f"no packaged checkpoint {name!r}; there are: {', '.join(packaged) or 'none'}")
    return checkpoint_dir() / read_manifest()[name]["file"]


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """The flat weights in a published file, a training checkpoint or an author's file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, holds code or holds no weights.
    """
    state_dict = unwrap(read_checkpoint(path))
    strays = [key for key, value in state_dict.items() if not isinstance(value, torch.Tensor)]
    if strays or not state_dict:
        raise ValueError(f"{path} holds no flat weights: {', '.join(strays[:3]) or 'nothing'} is no tensor")
    return state_dict
