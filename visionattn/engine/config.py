"""Finding a config by path or by the name of a packaged one."""

import difflib
from pathlib import Path
from typing import Any

from mmengine.config import Config

from visionattn.utils.resources import config_dir

__all__ = ["list_configs", "load_config"]


def list_configs() -> list[str]:
    """Names of the packaged configs, such as `classification/quickstart`."""
    root = config_dir()
    return sorted(
        path.relative_to(root).with_suffix("").as_posix()
        for path in root.rglob("*.py")
        if not path.relative_to(root).parts[0].startswith("_")
    )


def load_config(name: str | Path, options: dict[str, Any] | None = None, register: bool = True) -> Config:
    """Reads a config.

    Args:
        name: Path of a file, or a packaged config's name, with or without its folder and ending.
        options: Overrides, `{'train_cfg.max_epochs': 3}`.
        register: Whether to import the config's `custom_imports`, which register the types it names.

    Raises:
        FileNotFoundError: If there is no such file or name.
        ValueError: If several packaged configs have this name, or an override does not fit.
    """
    config = Config.fromfile(_find(str(name)), import_custom_modules=register)
    if options:
        try:
            config.merge_from_dict(options)
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError(f"cannot apply the overrides {options}: {error}") from error
    return config


def _find(name: str) -> Path:
    if Path(name).is_file():
        return Path(name)
    wanted = name.removesuffix(".py").removeprefix("configs/")
    known = list_configs()
    found = [config for config in known if wanted in (config, config.rpartition("/")[2])]
    if len(found) == 1:
        return config_dir() / f"{found[0]}.py"
    if found:
        raise ValueError(f"config {name!r} may be any of {', '.join(found)}")
    close = difflib.get_close_matches(wanted, [*known, *(config.rpartition("/")[2] for config in known)])
    hint = f"did you mean {' or '.join(close)}?" if close else "`visionattn configs` lists them"
    raise FileNotFoundError(f"no config {name!r}, neither as a file nor among the packaged ones; {hint}")
