"""Overrides single settings of a config, and refuses those that nothing reads."""

import copy
import difflib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import mmengine.registry
import mmengine.runner
import torch
from mmengine.config import Config, ConfigDict
from mmengine.optim import OptimWrapper
from mmengine.registry import Registry
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, LogProcessor, TestLoop, ValLoop
from torch.utils.data import DataLoader

from visionattn.plugins import attach
from visionattn.utils.building import did_you_mean

__all__ = ["apply_overrides", "known_names", "walk"]

Path = tuple[str, ...]

# What mmengine's runner reads from a config besides its own arguments.
_RUNNER = set(inspect.signature(mmengine.runner.Runner).parameters) - {"cfg"} | {
    *("custom_imports", "model_wrapper_cfg", "sync_bn", "find_unused_parameters", "compile", "gpu_ids"),
    *("activation_checkpointing", "efficient_conv_bn_eval", "broadcast_buffers"),
}
_LOADER = {"dataset", "sampler", "batch_sampler", "collate_fn", "worker_init_fn", "num_batch_per_epoch"}


def apply_overrides(config: Config, options: Mapping[str, Any]) -> None:
    """Changes a config in place.

    Args:
        config: As read from a file.
        options: `{'train_cfg.max_epochs': 3}`; numbers in a key count elements of lists, `_delete_` as a last part
            empties a dict first.

    Raises:
        ValueError: If nothing would read a setting, it does not fit into the config, or it puts text for a number.
    """
    before = copy.deepcopy(config)
    for key in sorted(options, key=lambda key: not key.endswith("._delete_")):
        _set(config, key, options[key])
    for key, value in options.items():
        _check(before, config, key, value)


def walk(node: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """All dicts, lists and values below a node with their paths, the node first."""
    yield path, node
    if isinstance(node, dict):
        for key in node:
            yield from walk(node[key], (*path, str(key)))
    elif isinstance(node, list | tuple):
        for number, value in enumerate(node):
            yield from walk(value, (*path, str(number)))


def known_names(path: Path, node: Mapping[str, Any]) -> set[str] | None:
    """The settings that a dict of a config may have; None if unknown.

    Args:
        path: Where the dict stands.
        node: The dict.
    """
    names = None
    if "type" in node:
        names = _parameters(*_classes(node["type"]))
    elif path in _PLAIN:
        found = _PLAIN[path]
        names = found if isinstance(found, set) else _parameters(found)
    elif path == ("train_cfg",):
        names = _parameters(EpochBasedTrainLoop if "max_epochs" in node else IterBasedTrainLoop)
    elif len(path) == 1 and path[0].endswith("_dataloader"):
        names = (_parameters(DataLoader) or set()) | _LOADER
    return names and names | {"type", "_scope_"} | _BUILDERS.get(path[0] if path else "", set())


# What those who build the parts of a section take out of them.
_BUILDERS = {
    "train_cfg": {"by_epoch"},
    "optim_wrapper": {"constructor", "paramwise_cfg"},
    "param_scheduler": {"convert_to_iter_based"},
    "default_hooks": {"priority"},
    "custom_hooks": {"priority"},
}
_PLAIN: dict[Path, set[str] | Callable[..., Any]] = {
    ("optim_wrapper",): OptimWrapper,
    ("custom_imports",): {"imports", "allow_failed_imports"},
    ("val_cfg",): ValLoop,
    ("test_cfg",): TestLoop,
    ("randomness",): mmengine.runner.Runner.set_randomness,
    ("log_processor",): LogProcessor,
    ("auto_scale_lr",): {"enable", "base_batch_size"},
    ("env_cfg",): {"cudnn_benchmark", "mp_cfg", "dist_cfg", "resource_limit"},
    ("env_cfg", "mp_cfg"): {"mp_start_method", "opencv_num_threads"},
    ("optim_wrapper", "clip_grad"): torch.nn.utils.clip_grad_norm_,
    ("model", "attach"): attach,
}


def _set(config: Config, key: str, value: Any) -> None:
    *parents, last = key.split(".")
    node: Any = config
    for depth, part in enumerate(parents):
        node = _child(node, part, ".".join(parents[:depth]), key)
    if last == "_delete_":
        if value:
            node.clear()
    elif isinstance(node, list):
        node[_index(node, last, ".".join(parents), key)] = value
    elif not isinstance(node, Config | dict):
        raise ValueError(f"cannot set {key}: {'.'.join(parents)} is {node!r} and has no settings")
    elif isinstance(value, dict) and isinstance(node.get(last), dict) and not value.get("_delete_"):
        for name in value:
            _set(config, f"{key}.{name}", value[name])
    elif isinstance(value, dict):
        node[last] = {name: part for name, part in value.items() if name != "_delete_"}
    else:
        node[last] = value


def _child(node: Any, part: str, path: str, key: str) -> Any:
    if isinstance(node, list):
        return node[_index(node, part, path, key)]
    if not isinstance(node, Config | dict):
        raise ValueError(f"cannot set {key}: {path} is {node!r} and has no settings")
    if node.get(part) is None:
        node[part] = ConfigDict()
    return node[part]


def _index(node: list[Any], part: str, path: str, key: str) -> int:
    if not part.isdecimal() or int(part) >= len(node):
        raise ValueError(f"cannot set {key}: {path} is a list of {len(node)}, its elements are 0 to {len(node) - 1}")
    return int(part)


def _check(before: Config, after: Config, key: str, value: Any) -> None:
    """Raises if nothing reads a setting that has been changed."""
    parts = tuple(key.split("."))
    if parts[0] not in _RUNNER:
        if parts[0] not in before:
            raise ValueError(f"nothing reads {key}{did_you_mean(parts[0], _RUNNER | set(before.keys()))}")
        _check_copies(before, parts)
    old: Any = before
    new: Any = after
    for depth, part in enumerate(parts):
        is_new = not (isinstance(old, list) or (isinstance(old, Config | dict) and part in old))
        if depth and is_new and part != "_delete_" and isinstance(new, dict):
            _check_name(parts[:depth], part, new, key)
        old = None if is_new else old[int(part)] if isinstance(old, list) else old[part]
        new = new[int(part)] if isinstance(new, list) else new.get(part) if isinstance(new, Config | dict) else None
    _check_kind(old, value, key)


def _check_kind(old: Any, value: Any, key: str) -> None:
    """Raises if text replaces a number or a boolean."""
    if not isinstance(value, str) or not isinstance(old, int | float):
        return
    if isinstance(old, bool):
        if difflib.get_close_matches(value.lower(), ["true", "false"]):
            raise ValueError(f"{key} must be true or false (it is {old} in the config), got {value!r}")
    elif re.match(r"[-+.]?\d", value):
        raise ValueError(f"{key} must be a number (it is {old} in the config), got {value!r}")


def _check_name(path: Path, name: str, node: Any, key: str) -> None:
    if path == ("default_hooks",) and "type" not in (node.get(name) or {}):
        names = set(node) - {name}
        raise ValueError(f"nothing reads {key}: there is no hook {name!r}{did_you_mean(name, names)}")
    known = known_names(path, node)
    if known is not None and name not in known:
        what = f" ({node['type']})" if "type" in node else ""
        raise ValueError(
            f"nothing reads {key}: {'.'.join(path)}{what} has no setting {name!r}{did_you_mean(name, known)}"
        )


def _check_copies(config: Config, parts: Path) -> None:
    """Raises if the first part is a variable that other parts of the file hold copies of."""
    value = config[parts[0]]
    places = [
        path
        for path, node in walk(config._cfg_dict)
        if path and path[0] in _RUNNER and _is_copy(path, node, parts, value)
    ]
    if places:
        paths = [".".join((*place, *parts[1:])) for place in places]
        more = f" (and {len(paths) - 4} more)" if len(paths) > 4 else ""
        raise ValueError(
            f"{'.'.join(parts)} would change nothing: {parts[0]} is a variable of the config file that was copied; "
            f"set {', '.join(paths[:4])}{more} instead"
        )


def _is_copy(path: Path, node: Any, parts: Path, value: Any) -> bool:
    if isinstance(value, dict | list | tuple):
        return bool(value) and node == value
    if isinstance(value, str):
        return isinstance(node, str) and bool(value) and node.startswith(value)
    return path[-1] == parts[0] and node == value


def _classes(kind: Any) -> list[Callable[..., Any]]:
    """The classes that a `type` may name in any of mmengine's registries."""
    if callable(kind):
        return [kind]
    registries = [value for value in vars(mmengine.registry).values() if isinstance(value, Registry)]
    return [registry.module_dict[kind] for registry in registries if kind in registry.module_dict]


def _parameters(*targets: Callable[..., Any]) -> set[str] | None:
    """Names of the keyword arguments of functions and classes; None if any are accepted."""
    names: set[str] = set()
    for target in targets:
        classes: tuple[Any, ...] = inspect.getmro(target) if inspect.isclass(target) else ()
        functions = [cls.__init__ for cls in classes] or [target]
        for function in functions:
            parameters = inspect.signature(function).parameters.values()
            names |= {p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
            if not any(p.kind is p.VAR_KEYWORD for p in parameters):
                break
        else:
            return None  # what the last one takes besides is not known
    return names - {"self"} if targets else None
