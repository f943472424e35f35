"""Pictures in folders, one folder a class, as ImageNet comes."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.registry import DATASETS

from .images import IMAGE_SUFFIXES, LabelledImages, read_image

__all__ = ["ImageFolder"]


@DATASETS.register_module()
class ImageFolder(LabelledImages):
    """Labelled pictures on disk.

    Args:
        data_root: Folder with one sub-folder a class, sorted by name; or, with `ann_file`, what its paths start from.
        pipeline: Transforms.
        classes: Names of the classes in the order of their numbers; without it the sub-folders, or with `ann_file` the
            numbers that occur.
        ann_file: Text file with one `path number` a line, for sets that keep labels apart (ImageNet's validation set).

    Raises:
        FileNotFoundError: If a folder, a file or a class's folder is missing.
        ValueError: If there are no pictures, or a line or label is wrong.
    """

    def __init__(
        self,
        data_root: str | Path,
        pipeline: Sequence[dict[str, Any]],
        classes: Sequence[str] | None = None,
        ann_file: str | Path | None = None,
    ) -> None:
        root = Path(data_root)
        if not root.is_dir():
            raise FileNotFoundError(f"no folder {root} (data_root of ImageFolder)")
        if ann_file is None:
            self.paths, labels, classes = _scan(root, classes)
            source = f"{root} (looked for {', '.join(IMAGE_SUFFIXES)} in its sub-folders)"
        else:
            self.paths, labels = _read_annotations(root, Path(ann_file))
            classes = classes or [str(number) for number in range(max(labels, default=0) + 1)]
            source = str(ann_file)
        super().__init__(np.asarray(labels, np.int64), classes, pipeline, source)

    def describe(self, index: int) -> str:
        return str(self.paths[index])

    def read(self, index: int) -> np.ndarray:
        return read_image(self.paths[index])


def _scan(root: Path, classes: Sequence[str] | None) -> tuple[list[Path], list[int], Sequence[str]]:
    classes = classes or sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    paths, labels = [], []
    for number, name in enumerate(classes):
        if not (root / name).is_dir():
            raise FileNotFoundError(f"no folder {root / name} for class {name!r}")
        for folder, folders, files in os.walk(root / name):
            folders.sort()
            found = [Path(folder) / file for file in sorted(files) if file.lower().endswith(IMAGE_SUFFIXES)]
            paths += found
            labels += [number] * len(found)
    return paths, labels, classes


def _read_annotations(root: Path, ann_file: Path) -> tuple[list[Path], list[int]]:
    if not ann_file.is_file():
        raise FileNotFoundError(f"no annotation file {ann_file}")
    paths, labels = [], []
    for number, line in enumerate(ann_file.read_text().splitlines(), 1):
        if not line.strip():
            continue
        name, _, label = line.strip().rpartition(" ")
        if not name or not label.lstrip("-").isdigit():
            raise ValueError(f"{ann_file}, line {number}: expected 'path number', got {line!r}")
        paths.append(root / name)
        labels.append(int(label))
    return paths, labels
