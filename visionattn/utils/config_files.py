"""The packaged configs: names, purposes, and the networks that each is a recipe for. Needs no torch.

A recipe may say for which other networks it is meant, and which arguments of `model.backbone` these take:

    variants = {"va_stm_*_micro": {"drop_path_rate": 0.0}, "va_stm_*_tiny": {}}

The name `stm-pool-tiny_1024-300e_imagenet` then means the recipe `stm-swin-tiny_1024-300e_imagenet` with
`--model va_stm_pool_tiny`. The first pattern that fits a network counts.
"""

import ast
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

from .building import did_you_mean
from .resources import config_dir

__all__ = [
    "SCOPE",
    "ConfigFile",
    "arguments_for",
    "copy_text",
    "describe",
    "find_config",
    "list_configs",
    "read_text",
    "variants",
]

SCOPE = "visionattn::"  # stands before the name of a packaged config


@dataclass(frozen=True)
class ConfigFile:
    """The config file behind a name.

    Args:
        path: The file.
        network: Name of the network that takes the place of the file's own, if the name asks for another.
        name: As it was asked for, without folders and ending; a work folder can be named so.
    """

    path: Path
    network: str | None
    name: str


def list_configs() -> list[str]:
    """Names of the packaged configs, such as `classification/quickstart`."""
    root = config_dir()
    return sorted(
        path.relative_to(root).with_suffix("").as_posix()
        for path in root.rglob("*.py")
        if not path.relative_to(root).parts[0].startswith("_")
    )


def find_config(name: str) -> ConfigFile:
    """The file that a name stands for.

    Args:
        name: Path of a file, or a packaged config's name with or without `visionattn::`, its folder and its ending.

    Raises:
        FileNotFoundError: If there is no such file or name.
        ValueError: If several packaged configs have this name, or the file is no Python file.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml", ".json"):
        raise ValueError(f"{name}: a config is a Python file (.py), which is code; {path.suffix} files are not read")
    if not name.startswith(SCOPE) and path.is_file():
        return ConfigFile(path, None, path.stem)
    wanted = name.removeprefix(SCOPE).removesuffix(".py").removeprefix("configs/")
    if (packaged := config_dir() / f"{wanted}.py").is_file():
        return ConfigFile(packaged, None, packaged.stem)
    known = list_configs()
    folder, _, stem = wanted.rpartition("/")
    found = [config for config in known if config.rpartition("/")[2] == stem and config.startswith(folder)]
    if not found and (recipes := _recipes(stem, [config for config in known if config.startswith(folder)])):
        network = _network(stem)
        found = recipes
    else:
        network = None
    if len(found) == 1:
        return ConfigFile(config_dir() / f"{found[0]}.py", network, stem)
    if found:
        raise ValueError(f"config {name!r} may be any of {', '.join(found)}")
    meant = did_you_mean(wanted, {*known, *(config.rpartition("/")[2] for config in known)})
    raise FileNotFoundError(
        f"no config {name!r}, neither as a file nor among the packaged ones"
        f"{meant or '; `visionattn configs` lists them'}"
    )


@cache
def variants(path: Path) -> dict[str, dict[str, Any]]:
    """The other networks that a config file is a recipe for: patterns, and their changes to `model.backbone`."""
    for node in ast.parse(read_text(path)).body:
        if isinstance(node, ast.Assign) and any(getattr(target, "id", "") == "variants" for target in node.targets):
            return ast.literal_eval(node.value)
    return {}


def arguments_for(path: Path, network: str) -> dict[str, Any]:
    """The changes of a config file to `model.backbone` for another network, by its variants."""
    architecture = network.partition(".")[0]
    return next((values for pattern, values in variants(path).items() if fnmatchcase(architecture, pattern)), {})


def describe(path: Path) -> str:
    """The purpose of a config file: the first sentence of its docstring or leading comment."""
    text = read_text(path)
    if not (about := ast.get_docstring(ast.parse(text))):
        comment = re.match(r"(?:#.*\n?)*", text)
        about = " ".join(line.lstrip("# ") for line in comment[0].splitlines()) if comment else ""
    return re.split(r"\.(?:\s|$)", " ".join(about.split()), maxsplit=1)[0]


def copy_text(file: ConfigFile, backbone: dict[str, Any]) -> str:
    """The text of a packaged config, independent of its location.

    Args:
        file: The config.
        backbone: Its `model.backbone`, if its name asks for another network.

    Raises:
        ValueError: If it is no packaged one.
    """
    if config_dir() not in file.path.parents:
        raise ValueError(f"{file.path} is a file of yours: only packaged configs are copied")
    base = f"{SCOPE}{file.path.relative_to(config_dir()).with_suffix('').as_posix()}"
    if file.network:
        settings = ", ".join(f"{key}={value!r}" for key, value in backbone.items())
        return f'_base_ = ["{base}"]\nmodel = dict(backbone=dict(_delete_=True, {settings}))\n'
    text = read_text(file.path)

    def absolute(match: re.Match[str]) -> str:
        target = (file.path.parent / match[1]).resolve().relative_to(config_dir()).with_suffix("")
        return f'"{SCOPE}{target.as_posix()}"'

    bases = re.search(r"^_base_ = \[[^\]]*\]", text, re.MULTILINE)
    if bases is None:
        return text
    return text[: bases.start()] + re.sub(r'"([^"]+\.py)"', absolute, bases[0]) + text[bases.end() :]


def read_text(path: Path) -> str:
    """A config file's text, with or without a byte order mark."""
    return path.read_bytes().decode("utf-8-sig")


def _recipes(stem: str, known: list[str]) -> list[str]:
    """The packaged configs that have the network in a config's name among their variants, and else the same name."""
    method, network, rest = _parts(stem)
    found = []
    for config in known:
        other = config.rpartition("/")[2]
        if (method, rest) == _parts(other)[::2] and network:
            patterns = variants(config_dir() / f"{config}.py")
            if any(fnmatchcase(_network(stem), pattern) for pattern in patterns):
                found.append(config)
    return found


def _parts(stem: str) -> tuple[str, str, str]:
    """Method, network and the rest of `[<method>_]<network>_<batch>-<length>_<data>`."""
    parts = stem.split("_")
    return ("_".join(parts[:-3]), parts[-3], "_".join(parts[-2:])) if len(parts) > 2 else ("", "", stem)


def _network(stem: str) -> str:
    return f"va_{_parts(stem)[1].replace('-', '_')}"
