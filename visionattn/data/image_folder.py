"""Images in one folder per class, as in ImageNet."""

import logging
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.logging import print_log
from mmengine.registry import DATASETS

from .base import check_classes
from .files import (
    check_files,
    drop_unreadable,
    existing_folder,
    find_files,
    read_lines,
    relative_name,
    select_names,
    subfolders,
)
from .images import IMAGE_SUFFIXES, read_image
from .labelled import LabelledImages
from .serialized_list import SerializedList

__all__ = ["SPLIT_FOLDERS", "ImageFolder"]

# What folders of splits are called.
SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


@DATASETS.register_module()
class ImageFolder(LabelledImages):
    """Labelled pictures on disk.

    Hidden files and folders are passed over, symbolic links are followed, and the order of pictures is that of their
    paths.

    Args:
        data_root: Folder with one sub-folder a class, sorted by name; or, with `ann_file`, what its paths start from.
        pipeline: Transforms.
        classes: Names of the classes in the order of their numbers, of which folders may be missing; without it the
            sub-folders, or with `ann_file` the numbers that occur.
        ann_file: Text file with one `path number` a line, for sets that keep labels apart (ImageNet's validation set).
        split: Sub-folder of `data_root` that holds the folders of the classes, such as `train`.
        names_file: Text file with the pictures to use, one path below `data_root` a line; all without it.
        skip_unreadable: The largest share of pictures that may be unreadable; they are named in the log and left out.
            By default the first one is an error when its turn comes.

    Raises:
        FileNotFoundError: If a folder, a file or a picture is missing.
        ValueError: If there are no pictures, or a line or label is wrong.
    """

    def __init__(
        self,
        data_root: str | Path,
        pipeline: Sequence[dict[str, Any]],
        classes: Sequence[str] | None = None,
        ann_file: str | Path | None = None,
        split: str | None = None,
        names_file: str | Path | None = None,
        skip_unreadable: float = 0.0,
    ) -> None:
        root = existing_folder(data_root, "data_root of ImageFolder")
        if split is not None:
            root = existing_folder(root / split, f"split={split!r} of ImageFolder")
        if classes is not None:
            check_classes(classes, f"ImageFolder ({root})")
        if ann_file is None:
            pictures, classes = _scan(root, classes)
            source = str(root)
        else:
            pictures = _read_annotations(root, Path(ann_file))
            classes = classes or [str(number) for number in range(max((label for _, label in pictures), default=0) + 1)]
            source = str(ann_file)
        pictures = select_names(pictures, names_file, lambda pair: relative_name(pair[0], root), source)
        found = len(pictures)
        pictures = drop_unreadable(pictures, lambda p: read_image(p[0]), skip_unreadable, source, lambda p: str(p[0]))
        self.skipped = found - len(pictures)
        self.root = root
        self.files = SerializedList(str(path) for path, _ in pictures)
        labels = np.array([label for _, label in pictures], np.int64)
        super().__init__(labels, classes, pipeline, source)
        if names_file is None and (empty := set(range(len(classes))) - self.occurring_classes()):
            names = ", ".join(repr(classes[number]) for number in sorted(empty)[:10])
            print_log(f"{source}: no images of {len(empty)} classes: {names}", "current", logging.WARNING)

    def names(self) -> list[str]:
        return [relative_name(path, self.root) for path in self.paths()]

    def paths(self) -> list[Path]:
        return [Path(file) for file in self.files]

    def describe(self, index: int) -> str:
        return self.files[index]

    def read(self, index: int) -> np.ndarray:
        return read_image(self.files[index])


def _scan(root: Path, classes: Sequence[str] | None) -> tuple[list[tuple[Path, int]], Sequence[str]]:
    folders = {unicodedata.normalize("NFC", folder.name): folder for folder in subfolders(root)}
    splits = {name for names in SPLIT_FOLDERS.values() for name in names}
    if classes is None and folders and splits.issuperset(map(str.lower, folders)):
        first, names = next(iter(folders)), ", ".join(folders)
        raise ValueError(f"{root} holds splits ({names}), not classes: choose one, as split={first!r} of ImageFolder")
    classes = list(folders if classes is None else classes)
    found = [folders.get(unicodedata.normalize("NFC", name)) for name in classes]
    pictures = [(path, number) for number, folder in enumerate(found) if folder for path in find_files(folder)]
    if not pictures:
        looked = f"looked for {', '.join(IMAGE_SUFFIXES)} in the sub-folders {', '.join(classes) or '(there are none)'}"
        raise ValueError(f"ImageFolder: no images in {root}: {looked}")
    return pictures, classes


def _read_annotations(root: Path, ann_file: Path) -> list[tuple[Path, int]]:
    names, labels = [], []
    for number, line in enumerate(read_lines(ann_file), 1):
        if not line.strip():
            continue
        name, _, label = line.strip().rpartition(" ")
        if not name or not (label.isascii() and label.lstrip("-").isdigit()):
            raise ValueError(f"{ann_file}, line {number}: expected 'path number', got {line!r}")
        names.append(root / name)
        labels.append(int(label))
    return list(zip(check_files(names, lambda n: f"{ann_file} names it"), labels, strict=True))
