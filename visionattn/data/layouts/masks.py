"""Pictures with masks of class numbers or colours."""

from pathlib import Path

from ..files import find_files, subfolders
from ..mask_scan import scan_masks
from ..segmentation import MASK_SUFFIXES, ImageMaskFolder
from .common import Config, Layout, has_files, listed_classes, split_folders

__all__ = ["masks"]

_IMAGES = ("images", "image", "imgs", "img", "jpegimages")
_MASKS = ("masks", "mask", "annotations", "labels", "label", "gt", "ground_truth", "segmentation", "segmentationclass")
# What may stand at the end of a mask's name besides the picture's.
_ENDINGS = ("", "_mask", "_masks", "-mask", "_seg", "_segmentation", "_gt", "_label", "_labels", "_L", "_P")


def masks(path: Path, task: str | None) -> Layout | None:
    """segmentation: pictures with masks of the same names, in folders such as images and masks, by splits or not"""
    if task not in (None, "segmentation") or not path.is_dir():
        return None
    pairs = _pairs(path)
    if "train" not in pairs:
        return None
    images, folder = pairs["train"]
    ending = _ending(images, folder)
    if ending is None:
        return None
    files = [file for _, place in pairs.values() for file in find_files(place, MASK_SUFFIXES)]
    if ending:
        files = [file for file in files if file.stem.endswith(ending)]
    found = scan_masks(files, listed_classes(path, folder))
    datasets: dict[str, Config] = {
        split: {
            "type": ImageMaskFolder.__name__,
            "image_root": str(image_root),
            "mask_root": str(mask_root),
            **({"mask_suffix": ending} if ending else {}),
            **found,
        }
        for split, (image_root, mask_root) in pairs.items()
    }
    return Layout("pictures with masks", "segmentation", datasets)


def _pairs(path: Path) -> dict[str, tuple[Path, Path]]:
    """Folders of pictures and of masks by split; `train` where there are no splits."""
    images, folder = _named(path, _IMAGES), _named(path, _MASKS)
    if images and folder:
        inside, beside = split_folders(images), split_folders(folder)
        if "train" in inside and "train" in beside:
            return {split: (inside[split], beside[split]) for split in inside.keys() & beside.keys()}
        return {"train": (images, folder)}
    pairs = {}
    for split, place in split_folders(path).items():
        images, folder = _named(place, _IMAGES), _named(place, _MASKS)
        if images and folder:
            pairs[split] = images, folder
    if pairs or not has_files(path) or not _ending(path, path):
        return pairs
    return {"train": (path, path)}


def _named(path: Path, names: tuple[str, ...]) -> Path | None:
    return next((folder for folder in subfolders(path) if folder.name.lower() in names), None)


def _ending(images: Path, folder: Path) -> str | None:
    """The suffix of mask names; none if the first images have no masks."""
    known = {file.relative_to(folder).with_suffix("").as_posix() for file in find_files(folder, MASK_SUFFIXES)}
    stems = [file.relative_to(images).with_suffix("").as_posix() for file in find_files(images)]
    for ending in _ENDINGS[1:] if images == folder else _ENDINGS:
        own = [stem for stem in stems if not (images == folder and stem.endswith(ending))][:5]
        if own and all(f"{stem}{ending}" in known for stem in own):
            return ending
    return None
