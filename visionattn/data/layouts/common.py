"""Parts shared by the layouts: their result, and how names indicate splits and images."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import is_hidden, read_lines, subfolders
from ..image_folder import SPLIT_FOLDERS
from ..images import IMAGE_SUFFIXES

__all__ = ["TASKS", "Config", "Layout", "has_files", "listed_classes", "split_folders", "split_of"]

TASKS = ("classification", "detection", "instance", "segmentation")
Config = dict[str, Any]


@dataclass(frozen=True)
class Layout:
    """The data that a layout found.

    Args:
        title: What it is, for people.
        task: One of `TASKS`.
        datasets: Configs, without pipelines, of `train`, and of `val` and `test` if there are such.
    """

    title: str
    task: str
    datasets: dict[str, Config]


def split_of(name: str) -> str | None:
    """The split that a file or folder name indicates, such as `instances_train2017` or `valid`."""
    words = set(re.findall("[a-z]+", name.lower()))
    return next((split for split, names in SPLIT_FOLDERS.items() if words & set(names)), None)


def split_folders(folder: Path) -> dict[str, Path]:
    """The sub-folders named like splits."""
    named = {name: split for split, names in SPLIT_FOLDERS.items() for name in names}
    return {named[path.name.lower()]: path for path in subfolders(folder) if path.name.lower() in named}


def has_files(folder: Path, suffixes: Sequence[str] = IMAGE_SUFFIXES, deep: bool = False) -> bool:
    """Whether a folder contains a file with one of these extensions, optionally below it too."""
    if not folder.is_dir():
        return False
    paths = folder.rglob("*") if deep else folder.iterdir()
    return any(path.suffix.lower() in suffixes and not is_hidden(path.name) and path.is_file() for path in paths)


def listed_classes(*folders: Path) -> list[str] | None:
    """The class names in a text file, one per line, in one of these folders."""
    for folder in folders:
        for name in ("classes.txt", "labels.txt", "class_names.txt", "obj.names"):
            if (folder / name).is_file():
                return [line.strip() for line in read_lines(folder / name) if line.strip()]
    return None
