"""The base of all data sets: classes decided by training, and the interface of mmengine's joined data sets."""

import logging
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.logging import print_log
from mmengine.registry import DATASETS
from torch.utils.data import Dataset

from visionattn.utils.building import check

__all__ = ["PictureDataset", "check_classes", "check_dataset", "innermost_config", "share_classes"]


class PictureDataset(Dataset):
    """A data set of pictures. `metainfo['classes']` names its classes in the order of their numbers.

    Args:
        classes: Names of the classes.
        source: Where the pictures come from, for messages.

    Attributes:
        skipped: How many pictures were left out because they can't be read.

    Raises:
        ValueError: If there are no classes, or one is named twice.
    """

    skipped: int = 0

    def __init__(self, classes: Sequence[str], source: str) -> None:
        check_classes(classes, f"{type(self).__name__} ({source})")
        # macOS decomposes accents in the names of folders: a class is the same either way.
        self.metainfo: dict[str, Any] = {"classes": tuple(unicodedata.normalize("NFC", name) for name in classes)}
        self.source = source

    def names(self) -> list[str]:
        """The names that `names_file` uses for its images, in order; none if they are not files."""
        return []

    def paths(self) -> list[Path]:
        """The files of its images, in order; none if they are not files."""
        return []

    def full_init(self) -> None:
        """Does nothing, since everything is read at construction; mmengine's joined data sets call it."""

    def use_classes(self, classes: Sequence[str]) -> None:
        """Numbers the classes in the given order, matching them by name.

        Classes that do not occur here are logged.

        Raises:
            ValueError: If a picture shows a class that is not given.
        """
        classes = tuple(unicodedata.normalize("NFC", name) for name in classes)
        own = self.metainfo["classes"]
        if own == classes:
            return
        what = f"{type(self).__name__} ({self.source})"
        occurring = {own[number] for number in self.occurring_classes()}
        if extra := [name for name in own if name in occurring and name not in classes]:
            raise ValueError(
                f"{what} has {_listed(extra)}, which the training set does not have; its classes are {_listed(classes)}"
            )
        if missing := [name for name in classes if name not in occurring]:
            names = ", ".join(missing[:10]) + (f" and {len(missing) - 10} more" if len(missing) > 10 else "")
            print_log(f"{what} lacks classes of the training set: {names}", "current", logging.WARNING)
        numbers = [classes.index(name) if name in classes else -1 for name in own]
        self.renumber(np.array(numbers, np.int64))
        self.metainfo["classes"] = classes

    def occurring_classes(self) -> set[int]:
        """Numbers of the classes that occur; all of them if that is unknown without reading all files."""
        return set(range(len(self.metainfo["classes"])))

    def renumber(self, numbers: np.ndarray) -> None:
        """Gives each class the number at the index of its old number."""
        raise ValueError(f"{type(self).__name__} has the fixed classes {_listed(self.metainfo['classes'])}")


def check_classes(classes: Sequence[str], what: str) -> None:
    """Raises a ValueError if these are not class names, or one is repeated."""
    if isinstance(classes, str) or not all(isinstance(name, str) and name for name in classes):
        raise ValueError(f"{what}: classes must be a list of names, got {classes!r}")
    if not len(classes):
        raise ValueError(f"{what}: there are no classes")
    if twice := [name for name, count in Counter(classes).items() if count > 1]:
        raise ValueError(f"{what}: two classes are named {twice[0]!r}")


def share_classes(dataset: Any, classes: Sequence[str]) -> None:
    """Makes a data set number its classes as the training set does, joined data sets included.

    Args:
        dataset: Any data set; one without `metainfo['classes']` is left alone.
        classes: Names of the training set's classes.

    Raises:
        ValueError: If the data set shows other classes, or can't number them otherwise.
    """
    parts = list(getattr(dataset, "datasets", ())) or [d for d in (getattr(dataset, "dataset", None),) if d is not None]
    for part in parts:
        share_classes(part, classes)
    if parts:
        dataset._metainfo = parts[0].metainfo  # of mmengine's ConcatDataset and RepeatDataset, which copied it
        return
    own = getattr(dataset, "metainfo", {}).get("classes")
    if own is None or tuple(own) == tuple(classes):
        return
    if not hasattr(dataset, "use_classes"):
        raise ValueError(
            f"{type(dataset).__name__} has the classes {_listed(own)}, but the training set {_listed(classes)}"
        )
    dataset.use_classes(tuple(classes))


def check_dataset(config: Any, name: str) -> None:
    """Raises a ValueError if a data set's config names an unknown type or argument; looks into joined ones too.

    Args:
        config: The config.
        name: What to call it in messages, such as `train_dataloader.dataset`.
    """
    check(DATASETS, config, name)
    if "dataset" in config:
        check_dataset(config["dataset"], f"{name}.dataset")
    for number, part in enumerate(config.get("datasets", ())):
        check_dataset(part, f"{name}.datasets.{number}")


def innermost_config(config: Any) -> Any:
    """The config of the data set within joined ones (`ConcatDataset`, `RepeatDataset`), the first of several."""
    while "pipeline" not in config and ("dataset" in config or "datasets" in config):
        config = config["dataset"] if "dataset" in config else config["datasets"][0]
    return config


def _listed(names: Sequence[str]) -> str:
    """A few names in full."""
    shown = ", ".join(repr(name) for name in names[:10])
    return f"{shown} and {len(names) - 10} more" if len(names) > 10 else shown
