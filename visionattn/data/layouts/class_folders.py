"""Images in one folder per class."""

from pathlib import Path

from ..files import subfolders
from ..image_folder import ImageFolder
from .common import Layout, has_files, split_folders

__all__ = ["class_folders"]


def class_folders(path: Path, task: str | None) -> Layout | None:
    """classification: a folder with one sub-folder of pictures a class, or folders train, val, test of such"""
    if task not in (None, "classification") or not path.is_dir():
        return None
    splits = split_folders(path)
    if "train" in splits and _classes(splits["train"]):
        datasets = {split: {"type": ImageFolder.__name__, "data_root": str(folder)} for split, folder in splits.items()}
        return Layout("folders of classes, by splits", "classification", datasets)
    if _classes(path):
        return Layout(
            "a folder with one sub-folder a class",
            "classification",
            {"train": {"type": ImageFolder.__name__, "data_root": str(path)}},
        )
    return None


def _classes(folder: Path) -> bool:
    return sum(has_files(inside, deep=True) for inside in subfolders(folder)) >= 2
