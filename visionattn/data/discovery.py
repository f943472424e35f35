"""Recognises data in a folder: format, task, classes and splits, as data set configs. Used by `train --data`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.logging import print_log
from mmengine.registry import DATASETS

from visionattn.utils.files import replacing

from .base import share_classes
from .files import read_lines, subfolders
from .images import image_size
from .layouts import LAYOUTS, TASKS, Layout
from .layouts.common import Config

__all__ = ["DiscoveredData", "discover"]

_SIZED = 200  # pictures whose size is looked at


@dataclass(frozen=True)
class DiscoveredData:
    """The result of `discover`.

    Args:
        path: Where.
        task: `classification`, `detection`, `instance` or `segmentation`.
        layout: What it is, for people.
        classes: Names of the classes, in the order of their numbers.
        datasets: Configs of the data sets `train`, `val` and `test`, without their `pipeline`.
        counts: How many pictures each of them has.
        size: Typical height and width of a picture, in pixels.
        split: Where the split comes from, for people.
    """

    path: Path
    task: str
    layout: str
    classes: tuple[str, ...]
    datasets: dict[str, dict[str, Any]]
    counts: dict[str, int]
    size: tuple[int, int]
    split: str


def discover(
    path: str | Path,
    task: str | None = None,
    work_dir: str | Path | None = None,
    val_share: float = 0.2,
    seed: int = 0,
) -> DiscoveredData:
    """Recognises the data at a path.

    These are known: a folder with one sub-folder a class; COCO's json files beside pictures; Pascal VOC's xml files or
    masks; YOLO's text labels, with a data.yaml or without; pictures with masks. Splits are taken as they are; where
    there is none to validate on, pictures to train on are set apart and both lists written into the work folder, from
    which a later call takes them.

    Args:
        path: A folder, an annotation file of COCO's or a data.yaml.
        task: What to look for: `classification`, `detection`, `instance` or `segmentation`; what there is without it.
        work_dir: Folder of the run, for the lists; never within the data.
        val_share: Share of the training pictures that a split made here sets apart, of each class where there is one
            a picture.
        seed: Gives other splits.

    Raises:
        FileNotFoundError: If there is nothing at the path, or a file that belongs to the data is missing.
        ValueError: If nothing is recognised, an argument is out of range, or the data are damaged.
    """
    path = Path(path)
    if task is not None and task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {task!r}")
    if not 0 < val_share < 1:
        raise ValueError(f"val_share must lie in (0, 1), got {val_share}")
    if not path.exists():
        raise FileNotFoundError(f"no data at {path}")
    layout = _recognise(path, task)
    configs = {split: dict(config) for split, config in layout.datasets.items()}
    split = "as found"
    if "val" not in configs:
        split = _set_apart(configs, path, work_dir, val_share, seed)
    configs.setdefault("test", configs["val"])
    configs = {name: _for_use(config, name, layout.task) for name, config in configs.items()}
    datasets = {name: _build(configs[name]) for name in ("train", "val", "test")}
    classes = datasets["train"].metainfo["classes"]
    for name in ("val", "test"):
        share_classes(datasets[name], classes)
    counts = {name: len(dataset) for name, dataset in datasets.items()}
    size = _typical_size(_paths(datasets["train"]))
    return DiscoveredData(path, layout.task, layout.title, classes, configs, counts, size, split)


def _recognise(path: Path, task: str | None) -> Layout:
    """The first layout that matches, here or in the only sub-folder."""
    place = path
    for _ in range(3):
        for look in LAYOUTS:
            found = look(place, task)
            if found is not None:
                return found
        inside = subfolders(place) if place.is_dir() else []
        if len(inside) != 1:
            break
        place = inside[0]
    looked = "\n".join(f"- {str(look.__doc__).splitlines()[0]}" for look in LAYOUTS)
    wanted = f" for {task}" if task else ""
    raise ValueError(f"no data set{wanted} recognised in {path}; looked for\n{looked}")


def _for_use(config: Config, split: str, task: str) -> Config:
    """A config for training, without empty images, or for evaluation, with the original annotations."""
    if "datasets" in config:
        return {**config, "datasets": [_for_use(part, split, task) for part in config["datasets"]]}
    if split == "train":
        return {**config, "drop_empty": True} if task in ("detection", "instance") else config
    return config if task == "classification" else {**config, "test_mode": True}


def _build(config: Config) -> Any:
    if "datasets" in config:
        return DATASETS.build({**config, "datasets": [{**part, "pipeline": []} for part in config["datasets"]]})
    return DATASETS.build({**config, "pipeline": []})


def _paths(dataset: Any) -> list[Path]:
    parts = getattr(dataset, "datasets", None)
    return dataset.paths() if parts is None else [path for part in parts for path in part.paths()]


def _set_apart(configs: dict[str, Config], path: Path, work_dir: str | Path | None, share: float, seed: int) -> str:
    """Splits the training set in two with lists in the work folder, and reports it."""
    if "datasets" in configs["train"]:
        raise ValueError(f"{path} has several folders to train on and none to validate on: name one in its data.yaml")
    if work_dir is None:
        raise ValueError(f"{path} has no pictures to validate on: give a work_dir, into which the split is written")
    folder = Path(work_dir) / "split"
    data = path if path.is_dir() else path.parent
    if folder.resolve().is_relative_to(data.resolve()):
        raise ValueError(f"the work folder {work_dir} lies within the data {data}: choose one outside")
    files = {name: folder / f"{name}.txt" for name in ("train", "val")}
    train = _build(configs["train"])
    names = train.names()
    if all(file.is_file() for file in files.values()):
        listed = {name.strip() for file in files.values() for name in read_lines(file)}
        if new := len(set(names) - listed):
            print_log(f"{new} pictures of {path} are in neither list of {folder} and left out", "current")
        said = f"as in {folder}"
    else:
        chosen = _choose(getattr(train, "labels", np.zeros(len(names), np.int64)), share, seed)
        if not 0 < chosen.sum() < len(names):
            raise ValueError(f"{path} has too few pictures ({len(names)}) to set some apart for validation")
        for name, mask in (("train", ~chosen), ("val", chosen)):
            with replacing(files[name]) as temporary:
                lines = [names[number] for number in np.flatnonzero(mask)]
                temporary.write_text("\n".join([*lines, ""]), encoding="utf-8", errors="surrogateescape")
        said = f"{share:.0%} set apart for validation (seed {seed}), written to {folder}"
    for name in ("val", "train"):
        configs[name] = {**configs["train"], "names_file": str(files[name])}
    return said


def _choose(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Chooses the held-out images: a share of each class, at least one of two."""
    generator = np.random.default_rng(seed)
    chosen = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        places = generator.permutation(np.flatnonzero(labels == label))
        chosen[places[: min(max(round(share * len(places)), 1), len(places) - 1)]] = True
    return chosen


def _typical_size(paths: Sequence[Path]) -> tuple[int, int]:
    """The median size of some images, ignoring unreadable ones."""
    sizes = []
    for place in np.linspace(0, len(paths) - 1, min(_SIZED, len(paths))).astype(int).tolist():
        try:
            sizes.append(image_size(paths[place]))
        except (OSError, ValueError):
            continue
    if not sizes:
        raise ValueError(f"none of the pictures can be read, such as {paths[0]}")
    height, width = np.median(np.array(sizes), axis=0).round().astype(int).tolist()
    return height, width
