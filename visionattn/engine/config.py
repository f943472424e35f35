"""Loads configs by path or name, with overridden networks and settings."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from mmengine.config import Config, ConfigDict

from visionattn.utils.building import did_you_mean
from visionattn.utils.config_files import arguments_for, find_config, list_configs

from .config_reader import import_modules, read_config
from .overrides import apply_overrides
from .schedule import stretch_schedule

__all__ = ["check_network", "list_configs", "load_config"]

# Settings of a backbone that belong to the task or the recipe and not to the network.
_KEPT = ("num_classes", "in_chans", "drop_rate", "drop_path_rate", "grad_checkpointing")


def load_config(
    name: str | Path, options: Mapping[str, Any] | None = None, model: str | None = None, register: bool = True
) -> Config:
    """Reads a config.

    Args:
        name: Path of a file, or a packaged config's name, with or without `visionattn::`, its folder and its ending.
        options: Overrides, `{'train_cfg.max_epochs': 3}`. Another length of the run stretches the schedules with it,
            unless they are overridden too.
        model: Name of a timm network that takes the place of the config's own; with a tag, as in `resnet50.tv_in1k`,
            its pretrained weights.
        register: Whether to import the config's `custom_imports`, which register the types it names.

    Raises:
        FileNotFoundError: If there is no such file or name.
        ValueError: If several packaged configs have this name, the file cannot be read, there is no such network, or
            nothing would read an override.
    """
    file = find_config(str(name))
    config = read_config(file.path, register)
    config.pop("variants", None)
    stem = file.name
    if network := model or file.network:
        _replace_network(config, network, arguments_for(file.path, network))
        stem = re.sub(r"[^\w.-]+", "-", f"{stem}-{model}") if model else stem
    if options:
        lengths = _lengths(config)
        apply_overrides(config, options)
        if any(key.startswith("custom_imports") for key in options):
            import_modules(config)
        if not any(key.startswith("param_scheduler") for key in options):
            for key, length in _lengths(config).items():
                if length != lengths.get(key, length):
                    stretch_schedule(config, length / lengths[key])
    # Work folders and copies of the config are named after what was asked for.
    return Config(config._cfg_dict, cfg_text=config.text, filename=str(file.path.with_name(f"{stem}.py")))


def check_network(name: str) -> None:
    """Raises unless timm knows a network; its name may have a tag."""
    if not timm.is_model(name):
        known = timm.list_models()
        raise ValueError(
            f"timm has no network {name!r}{did_you_mean(name, known) or did_you_mean(f'va_{name}', known)}"
        )


def _replace_network(config: Config, name: str, arguments: Mapping[str, Any]) -> None:
    if ":" not in name:
        check_network(name)
    if "backbone" not in config.get("model", {}):
        raise ValueError("the config has no model.backbone, where the network would go")
    model = config.model
    pretrained = "." in name or ":" in name
    model.backbone = ConfigDict(
        model_name=name,
        **{key: model.backbone[key] for key in _KEPT if key in model.backbone and key not in arguments},
        **arguments,
        **({"pretrained": True} if pretrained else {}),
    )
    if not pretrained:  # what has not been trained yet must not be frozen
        model.update({key: value for key, value in {"frozen_stages": 0, "norm_eval": False}.items() if key in model})
    elif (cfg := timm.get_pretrained_cfg(name)) and "mean" in config.get("data_preprocessor", {}):
        config.data_preprocessor.update(mean=[255 * v for v in cfg.mean], std=[255 * v for v in cfg.std])


def _lengths(config: Config) -> dict[str, float]:
    train = config.get("train_cfg") or {}
    return {key: train[key] for key in ("max_epochs", "max_iters") if isinstance(train.get(key), int | float)}
