"""COCO annotation files, wherever they and their images are."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..coco import CocoDetection
from ..coco_file import LISTS
from ..files import is_hidden, read_json, subfolders
from .common import Config, Layout, split_of

__all__ = ["coco"]

# Files of COCO's own that are about something else than objects.
_OTHERS = ("captions_", "person_keypoints_", "image_info_", "panoptic_", "stuff_")


def coco(path: Path, task: str | None) -> Layout | None:
    """detection, instance: COCO's json files (images, annotations, categories), pictures in folders beside them"""
    if task not in (None, "detection", "instance"):
        return None
    found: dict[str, tuple[Path, Any]] = {}
    named = path.is_file() and path.suffix.lower() == ".json"
    for file in [path] if named else _json_files(path):
        content = _read(file, strict=named or task is not None)
        if content is None:
            continue
        split = split_of(file.stem) or split_of(file.parent.name) or "train"
        if split in found and not named:
            raise ValueError(f"{found[split][0]} and {file} are both annotations for {split}: name one of them as data")
        found[split] = file, content
    if not found:
        return None
    if len(found) == 1:
        found = {"train": next(iter(found.values()))}
    if "train" not in found:
        raise ValueError(f"{path} has COCO files for {', '.join(found)}, but none for train")
    root = path if path.is_dir() else path.parent.parent if path.parent.name == "annotations" else path.parent
    masks = {"masks": True} if task == "instance" else {}
    datasets: dict[str, Config] = {}
    for split, (file, content) in found.items():
        folder = _image_root(file, content, root, split)
        datasets[split] = {"type": CocoDetection.__name__, "ann_file": str(file), "image_root": str(folder), **masks}
    return Layout("COCO annotations", task or "detection", datasets)


def _json_files(folder: Path) -> Iterator[Path]:
    """Those in a folder and its sub-folders; of COCO's own, those of objects."""
    if not folder.is_dir():
        return
    for place in (folder, *subfolders(folder)):
        for file in sorted(place.glob("*.json")):
            if not is_hidden(file.name) and not file.name.startswith(_OTHERS):
                yield file


def _read(file: Path, strict: bool) -> Any:
    try:
        content = read_json(file)
    except ValueError:
        if strict:
            raise
        return None
    lists = isinstance(content, dict) and all(isinstance(content.get(key), list) for key in LISTS)
    return content if lists else None


def _image_root(file: Path, content: Any, root: Path, split: str) -> Path:
    """The folder from which the pictures' names start."""
    images = content["images"]
    names = [
        image["file_name"].replace("\\", "/")
        for image in images[:: max(len(images) // 20, 1)]
        if isinstance(image, dict) and isinstance(image.get("file_name"), str)
    ]
    inside = [folder for first in subfolders(root) for folder in (first, *subfolders(first))]
    inside.sort(key=lambda folder: split_of(folder.name) != split)
    for folder in (file.parent, root, *inside):
        if names and all((folder / name).is_file() for name in names):
            return folder
    example = names[0] if names else "a picture"
    looked = ", ".join(str(folder) for folder in (file.parent, root, *inside)[:6])
    raise FileNotFoundError(f"no folder with {example} and the other pictures of {file}; looked in {looked}")
