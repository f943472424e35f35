"""Pascal VOC's folders, and what labelling tools write in its format."""

import re
from pathlib import Path

from ..files import subfolders
from ..segmentation import MASK_SUFFIXES
from ..voc import VOCDetection, VOCSegmentation
from .common import Config, Layout, has_files, split_folders

__all__ = ["voc"]

_IMAGES = ("JPEGImages", "images", "Images", "")
_LISTS = {"train": ("train", "trainval"), "val": ("val",), "test": ("test",)}


def voc(path: Path, task: str | None) -> Layout | None:
    """detection, segmentation: Pascal VOC's JPEGImages with Annotations (xml) or SegmentationClass, or xml files"""
    if task not in (None, "detection", "segmentation") or not path.is_dir():
        return None
    for kind in ("detection", "segmentation"):
        if task not in (None, kind):
            continue
        datasets = _datasets(path, kind)
        if datasets is not None:
            return Layout(f"Pascal VOC's {'xml files' if kind == 'detection' else 'masks'}", kind, datasets)
    return None


def _datasets(path: Path, kind: str) -> dict[str, Config] | None:
    years = [folder for folder in subfolders(path) if re.fullmatch(r"VOC\d{4}", folder.name)]
    places = years or [path]
    folders = [found for place in places if (found := _folders(place, kind)) is not None]
    if len(folders) == len(places):
        config = {"type": (VOCDetection if kind == "detection" else VOCSegmentation).__name__, **folders[0]}
        lists: dict[str, list] = {}
        for place in places:
            for split, names in _LISTS.items():
                folder = place / "ImageSets" / ("Main" if kind == "detection" else "Segmentation")
                name = next((name for name in names if (folder / f"{name}.txt").is_file()), None)
                if name is not None:
                    lists.setdefault(split, []).append((place.name[3:], name) if years else name)
        if "train" in lists:
            return {split: {**config, "data_root": str(path), "sets": sets} for split, sets in lists.items()}
        if len(places) == 1:
            return {"train": {**config, "data_root": str(places[0]), "sets": None}}
        raise ValueError(f"{path} has no lists ImageSets/*/train.txt that say which pictures to train on")
    splits = split_folders(path)
    if "train" in splits:
        found = {split: _datasets(folder, kind) for split, folder in splits.items()}
        datasets = {split: inside["train"] for split, inside in found.items() if inside}
        return datasets if "train" in datasets else None
    return None


def _folders(place: Path, kind: str) -> Config | None:
    """The folders of images and annotations, as arguments of the data set."""
    candidates: tuple[str, ...]
    suffixes: tuple[str, ...]
    if kind == "detection":
        key, candidates, suffixes = "annotation_folder", ("Annotations", "annotations", ""), (".xml",)
    else:
        key, candidates, suffixes = "mask_folder", ("SegmentationClass",), MASK_SUFFIXES
    annotations = next((name for name in candidates if has_files(place / name, suffixes)), None)
    images = next((name for name in _IMAGES if has_files(place / name)), None)
    if annotations is None or images is None:
        return None
    return {"image_folder": images, key: annotations}
