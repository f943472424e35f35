"""What every `va_*` family needs to stand in timm's registry: weight tags and checked loading."""

import re
import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch
from timm.models import DefaultCfg, build_model_with_cfg, generate_default_cfgs, register_model, resolve_pretrained_cfg
from torch import nn

from visionattn.utils.files import read_checkpoint
from visionattn.utils.progress import download_bars
from visionattn.utils.quantization import unpack
from visionattn.utils.resources import read_manifest
from visionattn.utils.weight_files import find, obtain, sources

__all__ = [
    "CONVERTERS",
    "build_model",
    "check_state_dict",
    "chosen_maps",
    "family_cfgs",
    "register_network",
    "rename_keys",
    "unwrap",
]

StateDict = dict[str, torch.Tensor]

# Name of a network -> what maps weights in any format that its family knows to its own keys.
CONVERTERS: dict[str, Callable[[StateDict, nn.Module], StateDict]] = {}


def family_cfgs(models: Iterable[str], cfg: Callable[..., dict[str, Any]]) -> dict[str, DefaultCfg]:
    """timm's cfgs of a family: one for each classifier of these models in the manifest, an empty one for the others.

    Args:
        models: Names of architectures.
        cfg: Makes a cfg; called with the architecture and the fields that the manifest states.
    """
    wanted = set(models)
    entries = {
        name: entry
        for name, entry in read_manifest().items()
        if entry["model"] in wanted and entry["task"] == "classification"
    }
    published = {entry["model"] for entry in entries.values()}
    cfgs = {name: cfg(name) for name in models if name not in published}
    for name, entry in entries.items():
        if {"kind": "packaged"} in entry["sources"]:
            source = {"file": str(find(entry))}
        elif repositories := sources(entry, "hub", "id"):
            source = {"hf_hub_id": repositories[0]}
        else:
            # Tells timm that there are weights; `build_model` fetches them, for timm could not.
            source = {"url": (sources(entry, "url") + sources(entry, "page"))[0]}
        # Some authors do not say what may be done with their weights.
        cfgs[name] = cfg(entry["model"], license=entry["license"] or "unknown", **source, **entry["input"])
    return generate_default_cfgs(cfgs)


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
    model_cls: type[nn.Module],
    variant: str,
    pretrained: bool,
    *,
    to_native: Callable[[StateDict, nn.Module], StateDict],
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    **kwargs: Any,
) -> nn.Module:
    """timm's builder with checked weights.

    Args:
        model_cls: The network's class.
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


def register_network(
    module: str,
    name: str,
    doc: str,
    model_cls: Callable[..., nn.Module],
    *,
    to_native: Callable[[StateDict, nn.Module], StateDict],
    feature_cfg: dict[str, Any],
    **arguments: Any,
) -> None:
    """Registers a network with timm and puts its entrypoint into the module that describes it.

    Args:
        module: Name of that module, which holds `default_cfgs`.
        name: Name of the network.
        doc: Its docstring.
        model_cls: Its class.
        to_native: As in `build_model`.
        feature_cfg: How timm extracts its features.
        **arguments: Of the class; a caller's own take their place.
    """

    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        # timm takes entries out of feature_cfg.
        features = dict(feature_cfg)
        merged = {**arguments, **_as_published(name, pretrained, kwargs)}
        return build_model(model_cls, name, pretrained, to_native=to_native, feature_cfg=features, **merged)

    CONVERTERS[name] = to_native
    create.__name__ = create.__qualname__ = name
    create.__module__ = module
    create.__doc__ = doc
    setattr(sys.modules[module], name, register_model(create))


def _as_published(name: str, pretrained: bool, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments with what the manifest says of the tag that they ask for: the network's arguments, and its local file.

    Raises:
        FileNotFoundError: If the file of weights can't be fetched.
    """
    tag, overlay = kwargs.get("pretrained_cfg"), kwargs.get("pretrained_cfg_overlay") or {}
    cfg = resolve_pretrained_cfg(name, tag, overlay)
    entry = read_manifest().get(f"{name}.{cfg.tag}")
    other_weights = any(overlay.get(source) for source in ("file", "url", "hf_hub_id", "state_dict"))
    if entry is None or other_weights or not (pretrained or tag):
        return kwargs
    kwargs = {**entry.get("arguments", {}), **kwargs}
    if not pretrained or cfg.file:
        return kwargs
    found = find(entry)
    if found is None:
        if sources(entry, "hub", "id"):
            return kwargs  # timm asks the hub itself
        with download_bars() as bar:
            found = obtain(entry, bar(f"{name}.{cfg.tag}"))
    return {**kwargs, "pretrained_cfg_overlay": {**overlay, "file": str(found)}}


def _below(key: str, modules: tuple[str, ...]) -> bool:
    return any(key.startswith(f"{module}.") for module in modules)
