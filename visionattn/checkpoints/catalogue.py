"""Checkpoints by name, file or repository: listing, metadata, weights and networks."""

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from visionattn.models import CONVERTERS, check_state_dict
from visionattn.models.loading import load_fitting
from visionattn.models.modifications import apply_modifications
from visionattn.models.published import published_cfg
from visionattn.utils.download import Progress
from visionattn.utils.locate import find_checkpoint, locate
from visionattn.utils.published import is_network, list_published
from visionattn.utils.resources import checkpoint_dir, read_manifest

from .files import read_weights

__all__ = ["build", "info", "list", "load", "packaged_path", "path"]


def list(pattern: str = "*") -> tuple[str, ...]:
    """Names of checkpoints, `<model>.<tag>`, that match a pattern such as `va_resnet*`; a model matches all its tags.

    First those of the manifest, then the user's in ./checkpoints and in the folder that VISIONATTN_CHECKPOINTS names.

    Raises:
        ValueError: If none fits.
    """
    known = (*read_manifest(), *(name for name in list_published() if name not in read_manifest()))
    names = tuple(name for name in known if any(fnmatchcase(n, pattern) for n in (name, name.split(".")[0])))
    if not names:
        raise ValueError(f"no checkpoint fits {pattern!r}; visionattn.checkpoints.list() names them all")
    return names


def info(checkpoint: str | Path) -> dict[str, Any]:
    """The metadata of a checkpoint: task, classes, sizes, metrics, licence, origin, ...

    Args:
        checkpoint: A name `<model>.<tag>`, a published file, `hf-hub:ORG/NAME` or `local-dir:FOLDER`.

    Returns:
        The manifest's entry (checkpoints/manifest.schema.json tells what the fields mean), or what the file says of
        itself (`visionattn.utils.published`), which has the same fields and more.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If there is none of this name, or the file says nothing of itself.
    """
    _, facts = find_checkpoint(checkpoint)
    if facts is None:
        raise ValueError(f"{checkpoint} does not say what it is: `visionattn publish` makes a file that does")
    return facts


def path(checkpoint: str | Path, progress: Progress = lambda done, total: None) -> Path:
    """The file of a checkpoint as its authors published it; downloaded if it is not on this machine.

    Args:
        checkpoint: As in `info`.
        progress: Told how many bytes have come, and of how many, if known.

    Raises:
        ValueError: If there is none of this name.
        FileNotFoundError: If it can't be downloaded; the message says how a person gets it.
    """
    return locate(checkpoint, progress)[0]


def load(checkpoint: str | Path) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint under our keys, downloaded and converted if necessary.

    Args:
        checkpoint: As in `info`, or a training checkpoint.

    Raises:
        ValueError: If there is none of this name, or it is damaged or does not fit its network.
        FileNotFoundError: If it can't be downloaded; the message says how a person gets it.
    """
    file, facts = locate(checkpoint)
    state_dict = read_weights(file)
    if facts is None or facts.get("format", "native") == "native":
        return state_dict
    arguments = {
        **facts.get("arguments", {}),
        **({"num_classes": n} if (n := facts["input"].get("num_classes")) else {}),
    }
    model = timm.create_model(facts["model"], device="meta", **arguments)
    native = CONVERTERS[facts["model"]](state_dict, model)
    check_state_dict(native, model)
    return native


def build(checkpoint: str | Path, **kwargs: Any) -> nn.Module:
    """The network of a checkpoint with its weights and modifications; for other tasks, the whole task.

    A network's `pretrained_cfg` has the classes' names (`label_names`), sizes, mean and standard deviation.

    Args:
        checkpoint: As in `info`.
        **kwargs: Of a classifier, further arguments of `timm.create_model`, such as `drop_path_rate`. With another
            `num_classes` its head is new, and `model.load_report` says so.

    Raises:
        FileNotFoundError: If it can't be downloaded.
        ValueError: If there is none of this name, it does not say what it is of, or does not fit.
    """
    file, facts = locate(checkpoint)
    if facts is None:
        raise ValueError(
            f"{checkpoint} does not say which network it is of: `visionattn publish` makes a file that does"
        )
    if not is_network(facts):
        if kwargs:
            raise ValueError(f"{checkpoint} is a whole task ({facts['task']}) and takes no arguments, got {kwargs}")
        from visionattn.tasks import from_checkpoint  # needs mmengine

        return from_checkpoint(checkpoint)[0]
    if facts.get("format", "native") != "native":
        return timm.create_model(f"{facts['model']}.{facts['tag']}", pretrained=True, **kwargs)
    cfg = published_cfg(facts, file)
    model = timm.create_model(facts["model"], pretrained_cfg=cfg, **{**facts.get("arguments", {}), **kwargs})
    model = apply_modifications(model, facts.get("modifications", ()))
    vars(model)["load_report"] = load_fitting(model, read_weights(file), other_classes="num_classes" in kwargs)
    return model


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
