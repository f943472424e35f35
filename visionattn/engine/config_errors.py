"""Explains why a run cannot be built from a config."""

import re
import traceback

import mmengine.registry
from mmengine.config import Config
from mmengine.registry import Registry

from visionattn.utils.building import did_you_mean

from .overrides import known_names, walk

__all__ = ["explain_build_error"]


def explain_build_error(error: Exception, config: Config) -> str | None:
    """One line on why a part of a config cannot be built, with its location and a suggestion.

    Args:
        error: What was raised.
        config: The config of the run.

    Returns:
        The line; None if the error was raised after everything was built.
    """
    if not any(frame.name.startswith("build_") for frame in traceback.extract_tb(error.__traceback__)):
        return None
    text = " ".join(str(error.args[0] if error.args else error).split())
    if match := re.search(r"unexpected keyword argument '(\w+)'", text):
        return _unknown_setting(match[1], config) or text
    if match := re.match(r"(\S+) is not in the \S+::([\w ]+) registry", text):
        return _unknown_type(match[1], match[2], config)
    return f"cannot build the run: {text or type(error).__name__}"


def _unknown_setting(name: str, config: Config) -> str | None:
    for path, node in walk(config._cfg_dict):
        if not isinstance(node, dict) or name not in node or name in (known := known_names(path, node) or set()):
            continue
        what = node.get("type") or node.get("model_name") or ".".join(path)
        # There is no list of what a network takes.
        known = known | (set(node) - {name}) | (_USUAL if "model_name" in node else set())
        return f"{'.'.join((*path, name))}: {what} has no setting {name!r}{did_you_mean(name, known)}"
    return None


_USUAL = {"num_classes", "in_chans", "drop_rate", "drop_path_rate", "pretrained", "img_size", "out_indices"}


def _unknown_type(name: str, registry: str, config: Config) -> str:
    places = [".".join(path) for path, node in walk(config._cfg_dict) if path and path[-1] == "type" and node == name]
    known = {
        key
        for value in vars(mmengine.registry).values()
        if isinstance(value, Registry) and value.name == registry
        for key in value.module_dict
    }
    place = f"{places[0]}: " if places else ""
    return f"{place}there is no {registry} {name!r}{did_you_mean(name, known)}"
