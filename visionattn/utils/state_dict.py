"""Cleans up state dicts: removes wrappers and prefixes, refuses what can't be weights."""

import re
from typing import Any

import torch

from .quantization import unpack

__all__ = ["StateDict", "check_finite", "class_names", "name_some", "network_weights", "unwrap"]

StateDict = dict[str, torch.Tensor]

_WRAPPERS = ("state_dict", "model")
# What torch.compile and DistributedDataParallel put before names.
_COMPILED = re.compile(r"(?:(?<=\.)|^)_orig_mod\.")
_PARALLEL = re.compile(r"^(?:module\.)+")
_BACKBONE = "backbone."


def unwrap(checkpoint: dict[str, Any], source: str = "the checkpoint") -> StateDict:
    """The flat state dict in a checkpoint, in float32 where it was stored in eight bits or four.

    Args:
        checkpoint: A state dict, or a dict with one under `state_dict` or `model`.
        source: What errors call it.

    Raises:
        ValueError: If it holds anything but tensors by name, or nothing.
    """
    for key in _WRAPPERS:
        if isinstance(checkpoint.get(key), dict):
            checkpoint = checkpoint[key]
    if not checkpoint:
        raise ValueError(f"{source} holds no weights")
    if unnamed := [key for key in checkpoint if not isinstance(key, str)]:
        raise ValueError(f"{source} holds no flat weights: keys must be names, got {name_some(map(repr, unnamed))}")
    if strays := [key for key, value in checkpoint.items() if not isinstance(value, torch.Tensor)]:
        raise ValueError(f"{source} holds no flat weights: {name_some(strays)} is no tensor")
    return unpack({_PARALLEL.sub("", _COMPILED.sub("", key)): value for key, value in checkpoint.items()})


def network_weights(checkpoint: dict[str, Any], source: str = "the checkpoint") -> StateDict:
    """As `unwrap`, and of a classifier's training checkpoint the network's own names, without `backbone.`."""
    weights = unwrap(checkpoint, source)
    if all(key.startswith(_BACKBONE) for key in weights):
        return {key.removeprefix(_BACKBONE): value for key, value in weights.items()}
    return weights


def class_names(checkpoint: dict[str, Any]) -> tuple[str, ...] | None:
    """Class names of one of our training checkpoints; None if it does not state them."""
    found: Any = checkpoint
    for key in ("meta", "dataset_meta", "classes"):
        found = found.get(key) if isinstance(found, dict) else None
    return tuple(map(str, found)) if isinstance(found, list | tuple) else None


def check_finite(state_dict: StateDict, source: str = "the checkpoint") -> None:
    """Refuses non-finite weights.

    Raises:
        ValueError: If there are any; it names them.
    """
    wrong = [
        key
        for key, value in state_dict.items()
        if value.is_floating_point() and not value.is_meta and not value.isfinite().all()
    ]
    if wrong:
        raise ValueError(f"{source} holds NaN or infinite values in {name_some(wrong)}")


def name_some(names: Any, limit: int = 4) -> str:
    """`a, b, c, d and 3 more`."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"{', '.join(names[:limit])}{more}"
