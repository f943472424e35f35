"""YOLO's text labels, with a data.yaml or without."""

from pathlib import Path
from typing import Any

from mmengine.dataset import ConcatDataset
from mmengine.logging import print_log

from ..files import find_files, is_hidden, read_lines, read_yaml
from ..yolo import YOLODetection, label_folder
from .common import Config, Layout, has_files, listed_classes, split_folders

__all__ = ["yolo"]


def yolo(path: Path, task: str | None) -> Layout | None:
    """detection, instance: YOLO's text labels, with a data.yaml (names, train, val) or in folders images and labels"""
    if task not in (None, "detection", "instance"):
        return None
    file = path if path.is_file() and path.suffix.lower() in (".yaml", ".yml") else _yaml_in(path)
    if file is not None:
        classes, folders = _from_yaml(file)
    elif path.is_dir():
        folders = _from_folders(path)
        if not folders:
            return None
        classes = listed_classes(path, path / "labels") or _numbered(folders)
    else:
        return None
    masks = {"masks": True} if task == "instance" else {}
    datasets = {}
    for split, roots in folders.items():
        if split == "test" and not any(has_files(label_folder(root), (".txt",), deep=True) for root in roots):
            print_log(f"{roots[0]} has no labels: it is not used as a test set", "current")
            continue
        parts: list[Config] = [
            {"type": YOLODetection.__name__, "image_root": str(root), "classes": classes, **masks} for root in roots
        ]
        datasets[split] = parts[0] if len(parts) == 1 else {"type": ConcatDataset.__name__, "datasets": parts}
    return Layout(f"YOLO labels{f' by {file.name}' if file else ''}", task or "detection", datasets)


def _yaml_in(folder: Path) -> Path | None:
    """The YAML file that names classes and folders."""
    if not folder.is_dir():
        return None
    for file in sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")]):
        if is_hidden(file.name):
            continue
        try:
            content = read_yaml(file)
        except ValueError:
            if file.stem in ("data", "dataset"):
                raise
            continue
        if isinstance(content, dict) and {"names", "train"} <= content.keys():
            return file
    return None


def _from_yaml(file: Path) -> tuple[list[str], dict[str, list[Path]]]:
    content = read_yaml(file)
    if not isinstance(content, dict) or not {"names", "train"} <= content.keys():
        raise ValueError(f"{file} must have names and train, as YOLO's data.yaml has")
    names = content["names"]
    if isinstance(names, dict):
        if sorted(names) != list(range(len(names))):
            raise ValueError(f"{file}: names must be numbered 0, 1, 2, ..., got {sorted(names, key=str)[:10]}")
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names:
        raise ValueError(f"{file}: names must be a list of classes, got {names!r}")
    if content.get("nc", len(names)) != len(names):
        raise ValueError(f"{file}: nc is {content['nc']}, but there are {len(names)} names")
    folders = {}
    for split in ("train", "val", "test"):
        value = content.get(split) or (content.get("valid") if split == "val" else None)
        if value:
            values = value if isinstance(value, list) else [value]
            try:
                folders[split] = [_resolve(file, content.get("path"), entry, split) for entry in values]
            except FileNotFoundError as error:
                if split != "test":  # tools name one though they make none
                    raise
                print_log(f"no test set: {error}", "current")
    return list(map(str, names)), folders


def _resolve(file: Path, base: Any, value: Any, split: str) -> Path:
    """The folder that an entry names, relative to the file or to its `path`."""
    if not isinstance(value, str) or (base is not None and not isinstance(base, str)):
        raise ValueError(f"{file}: {split} and path must be text, got {value!r} and {base!r}")
    # Tools write paths from elsewhere: what stands in front is tried and left out.
    tried = [file.parent / (base or "") / value, file.parent / value, file.parent / value.removeprefix("../")]
    for folder in tried:
        if folder.is_dir():
            return folder.resolve() if ".." in folder.parts else folder
        if folder.is_file():
            raise ValueError(f"{file}: {split} names the list {folder}; name the folder of the pictures")
    raise FileNotFoundError(f"{file}: {split} names {value!r}, but there is no folder {tried[0]}")


def _from_folders(path: Path) -> dict[str, list[Path]]:
    """Folders of pictures with labels: `images` and `labels`, with splits within them or around them."""
    images = path / "images"
    if has_files(path / "labels", (".txt",), deep=True) and images.is_dir():
        splits = split_folders(images)
        return {split: [folder] for split, folder in splits.items()} if "train" in splits else {"train": [images]}
    around = {
        split: [folder / "images"]
        for split, folder in split_folders(path).items()
        if (folder / "images").is_dir() and (folder / "labels").is_dir()
    }
    labelled = "train" in around and has_files(label_folder(around["train"][0]), (".txt",), deep=True)
    return around if labelled else {}


def _numbered(folders: dict[str, list[Path]]) -> list[str]:
    """Names for as many classes as the labels have, by number."""
    highest = 0
    for file in find_files(label_folder(folders["train"][0]), (".txt",)):
        for number, line in enumerate(read_lines(file), 1):
            label = line.split()[0] if line.split() else "0"
            if not label.isdecimal():
                raise ValueError(f"{file}, line {number}: expected a class number first, got {line!r}")
            highest = max(highest, int(label))
    return [str(number) for number in range(highest + 1)]
