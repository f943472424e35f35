"""Building networks through timm with weights that are checked: state dicts, their names and what must fit."""

import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from timm.models import build_model_with_cfg, resolve_pretrained_cfg
from torch import nn

from visionattn.utils.files import read_checkpoint
from visionattn.utils.quantization import unpack

__all__ = [
    "Converter",
    "StateDict",
    "build_model",
    "check_state_dict",
    "chosen_maps",
    "rename_keys",
    "unwrap",
]

StateDict = dict[str, torch.Tensor]
Converter = Callable[[StateDict, nn.Module], StateDict]


def unwrap(checkpoint: dict[str, Any]) -> StateDict:
    """The flat state dict in a checkpoint, unpacked: no `state_dict` or `model` around it, no `module.` prefixes."""
    for key in ("state_dict", "model"):
        if isinstance(checkpoint.get(key), dict):
            checkpoint = checkpoint[key]
    return unpack({key.removeprefix("module."): value for key, value in checkpoint.items()})


def rename_keys(
    state_dict: StateDict, patterns: Iterable[tuple[str, str | Callable[[re.Match[str]], str]]]
) -> StateDict:
    """A state dict with each `(regular expression, replacement)` applied to its keys in turn."""
    renamed = {}
    for key, value in state_dict.items():
        for pattern, replacement in patterns:
            key = re.sub(pattern, replacement, key)
        renamed[key] = value
    return renamed


def check_state_dict(state_dict: StateDict, model: nn.Module, free: Iterable[str] = ()) -> None:
    """Raises one error that names every missing, unknown or wrongly shaped entry of a state dict.

    Counters of batch normalisation may be missing (old files lack them); they do not change what a network computes.

    Args:
        state_dict: The entries to load.
        model: The network they are for.
        free: Prefixes of modules whose shapes may differ because the loader adapts or drops them (first convolution,
            classifier).

    Raises:
        ValueError: If anything does not fit.
    """
    own = model.state_dict()
    adaptable = tuple(free)
    missing = [
        k for k in own if k not in state_dict and not k.endswith("num_batches_tracked") and not _below(k, adaptable)
    ]
    unknown = [k for k in state_dict if k not in own and not _below(k, adaptable)]
    shapes = [
        f"{k} is {tuple(v.shape)}, the model has {tuple(own[k].shape)}"
        for k, v in state_dict.items()
        if k in own and v.shape != own[k].shape and not _below(k, adaptable)
    ]
    faults = [
        f"{what}: {', '.join(found[:8])}{f' and {len(found) - 8} more' if len(found) > 8 else ''}"
        for what, found in (("missing", missing), ("not in the model", unknown), ("wrong shape", shapes))
        if found
    ]
    if faults:
        raise ValueError(f"the weights do not fit {type(model).__name__}; " + "; ".join(faults))


def chosen_maps(indices: int | Iterable[int] | None, count: int) -> list[int]:
    """Numbers of the intermediate maps that timm's argument `indices` asks for.

    Args:
        indices: The last so many, these (negative ones count from the end), or all.
        count: How many there are.

    Raises:
        ValueError: If one is out of range, or none is asked for.
    """
    if isinstance(indices, int):
        wanted = list(range(count - indices, count))
    else:
        wanted = [index + count if index < 0 else index for index in (range(count) if indices is None else indices)]
    if not wanted or not 0 <= min(wanted) <= max(wanted) < count:
        raise ValueError(f"indices must choose from {count} maps, got {indices}")
    return wanted


def build_model(
    model_cls: Callable[..., nn.Module],
    variant: str,
    pretrained: bool,
    *,
    to_native: Converter,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    **kwargs: Any,
) -> nn.Module:
    """timm's builder with checked weights.

    Args:
        model_cls: The network's class, or a function that builds it.
        variant: Registered name.
        pretrained: Whether to load weights.
        to_native: Maps a flat state dict in any format the family knows to the network's own keys.
        pretrained_cfg: As in timm.
        pretrained_cfg_overlay: As in timm; `dict(file=PATH)` loads a local file.
        **kwargs: For the network's constructor and timm's builder.

    Raises:
        FileNotFoundError: If the file of weights is missing.
        ValueError: If it is damaged or does not fit the network.
    """
    cfg = resolve_pretrained_cfg(variant, pretrained_cfg, pretrained_cfg_overlay)
    if pretrained and cfg.file:
        read_checkpoint(cfg.file)  # timm reads it again, but what it says of a bad file is no help

    def filter_fn(checkpoint: dict[str, Any], model: nn.Module) -> StateDict:
        state_dict = to_native(unwrap(checkpoint), model)
        free = [cfg.classifier] if getattr(model, "num_classes", cfg.num_classes) != cfg.num_classes else []
        if getattr(model, "in_chans", 3) != cfg.input_size[0]:
            free.append(cfg.first_conv)
        check_state_dict(state_dict, model, free)
        # timm loads strictly: entries that may be missing are given the network's own values.
        own = model.state_dict()
        return {**{k: v for k, v in own.items() if k.endswith("num_batches_tracked")}, **state_dict}

    return build_model_with_cfg(
        model_cls,
        variant,
        pretrained,
        pretrained_cfg=pretrained_cfg,
        pretrained_cfg_overlay=pretrained_cfg_overlay,
        pretrained_filter_fn=filter_fn,
        **kwargs,
    )


def _below(key: str, modules: tuple[str, ...]) -> bool:
    return any(key.startswith(f"{module}.") for module in modules)
