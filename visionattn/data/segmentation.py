"""Images with masks of class indices: the base of segmentation data sets, ADE20K, and plain folders."""

import glob
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.registry import DATASETS

from .base import PictureDataset
from .files import check_files, drop_unreadable, existing_folder, find_files, read_lines, relative_name, select_names
from .images import read_annotated_image, read_image, read_mask
from .pipeline import IGNORED, SegmentationPipeline
from .serialized_list import SerializedList

__all__ = ["ADE20K", "MASK_SUFFIXES", "ImageMaskFolder", "SegmentedImages"]

MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".gif")
_SAMPLED = 16  # masks that are looked at when a data set is built


class SegmentedImages(PictureDataset):
    """Pictures, each with a mask file of the same size: grey of any depth, a palette, or colours.

    Args:
        files: Picture and mask of each sample.
        classes: Names of the classes.
        pipeline: Transforms as `visionattn.data.Pipeline` takes them.
        source: Where the files come from, for messages.
        root: Folder from which the names in `names_file` start.
        test_mode: Whether samples also hold the original mask, for evaluation.
        reduce_zero_label: Whether 0 in the files is ignored and class numbers start from 1.
        values: The value of each class in the files, such as `(0, 255)` for masks of black and white; 0, 1, 2, ...
            without it.
        palette: The colour of each class, as (red, green, blue), in masks that tell classes by colours.
        ignored: Values in the files that are neither learnt nor counted; 255 without it.
        names_file: Text file with the pictures to use, one path below `root` a line; all without it.
        skip_unreadable: The largest share of pictures and masks that may be unreadable; they are named in the log and
            left out. By default the first one is an error when its turn comes.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If there are no pictures, more than 255 classes, or masks in which 255, which is ignored by default,
            is the only value besides 0.
    """

    def __init__(
        self,
        files: Iterable[tuple[Path, Path]],
        classes: Sequence[str],
        pipeline: Sequence[dict[str, Any]],
        source: str,
        root: Path,
        test_mode: bool = False,
        reduce_zero_label: bool = False,
        values: Sequence[int] | None = None,
        palette: Sequence[tuple[int, int, int]] | None = None,
        ignored: int | Sequence[int] | None = None,
        names_file: str | Path | None = None,
        skip_unreadable: float = 0.0,
    ) -> None:
        super().__init__(classes, source)
        self.root = root
        what = type(self).__name__
        if len(classes) > IGNORED:
            raise ValueError(f"{what}: at most {IGNORED} classes, got {len(classes)}")
        if sum([reduce_zero_label, values is not None, palette is not None]) > 1:
            raise ValueError(f"{what}: reduce_zero_label, values and palette exclude each other")
        for key, given in (("values", values), ("palette", palette)):
            if given is not None and len({*map(str, given)}) != len(classes):
                raise ValueError(f"{what}: {key} needs one for each of the {len(classes)} classes, got {given}")
        self.palette = None if palette is None else tuple(map(tuple, palette))
        if self.palette is not None:
            self.metainfo["palette"] = self.palette
        self.values = None if values is None else [int(value) for value in values]
        self.reduce_zero_label = reduce_zero_label
        by_default = () if palette is not None or IGNORED in (self.values or ()) else (IGNORED,)
        chosen = by_default if ignored is None else (ignored,) if isinstance(ignored, int) else ignored
        self.ignored = [int(value) for value in chosen]
        self.pipeline = SegmentationPipeline(pipeline, original=test_mode)
        pairs = select_names(files, names_file, lambda pair: relative_name(pair[0], root), source)
        if not pairs:
            raise ValueError(f"{what}: no images in {source}")
        columns = (check_files(column, lambda number: source) for column in zip(*pairs, strict=True))
        found = len(pairs)
        pairs = drop_unreadable(
            list(zip(*columns, strict=True)),
            lambda pair: (read_image(pair[0]), read_mask(pair[1], self._colours())),
            skip_unreadable,
            source,
            lambda pair: str(pair[0]),
        )
        self.skipped = found - len(pairs)
        self.files = SerializedList((str(image), str(mask)) for image, mask in pairs)
        self.numbers: np.ndarray | None = None  # where `use_classes` has moved the classes
        if ignored is None and by_default:
            self._check_white()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image_path, mask_path = self.files[int(index)]
        mask = self._classes_of(read_mask(mask_path, self._colours()), mask_path)
        image = read_annotated_image(image_path, mask.shape)
        return self.pipeline(image, mask, int(index), getattr(index, "seed", None), image_path)

    def names(self) -> list[str]:
        return [relative_name(path, self.root) for path in self.paths()]

    def paths(self) -> list[Path]:
        return [Path(image) for image, _ in self.files]

    def renumber(self, numbers: np.ndarray) -> None:
        self.numbers = numbers if self.numbers is None else numbers[self.numbers]
        self.metainfo.pop("palette", None)  # drawing chooses colours where some classes have none

    def _colours(self) -> dict[tuple[int, ...], int] | None:
        return None if self.palette is None else {colour: number for number, colour in enumerate(self.palette)}

    def _classes_of(self, values: np.ndarray, path: str) -> np.ndarray:
        """Class numbers, `IGNORED` where there is none, from a file's values."""
        values = values.astype(np.int64)
        ignored = np.isin(values, self.ignored)
        own = self.metainfo["classes"] if self.numbers is None else self.numbers
        first = int(self.reduce_zero_label)
        if self.reduce_zero_label:
            ignored |= values == 0
        known = (values >= first) & (values < first + len(own)) if self.values is None else np.isin(values, self.values)
        if not (known | ignored).all():
            row, column = np.argwhere(~(known | ignored))[0]
            listed = f"{first} to {len(own) - 1 + first}" if self.values is None else ", ".join(map(str, self.values))
            passed = ", ".join(map(str, self.ignored)) or "nothing"
            raise ValueError(
                f"mask {path} has the value {values[row, column]} at row {row}, column {column}; allowed are {listed} "
                f"for the {len(own)} classes and {passed} for what is ignored"
            )
        if self.values is None:
            classes = values - first
        else:
            order = np.argsort(self.values)
            place = np.searchsorted(np.asarray(self.values)[order], values).clip(max=len(own) - 1)
            classes = order[place]
        if self.numbers is not None:
            classes = self.numbers[np.where(ignored, 0, classes)]
        return np.where(ignored, IGNORED, classes).astype(np.uint8)

    def _check_white(self) -> None:
        """Refuses masks of 0 and 255, which would teach background only: 255 is ignored by default."""
        found: set[int] = set()
        for place in np.linspace(0, len(self) - 1, min(_SAMPLED, len(self))).astype(int).tolist():
            try:
                found.update(np.unique(read_mask(self.files[place][1])).tolist())
            except (OSError, ValueError):
                continue  # an error when its turn comes
        if IGNORED in found and found <= {0, IGNORED}:
            classes = self.metainfo["classes"][1:] if 0 in found and not self.reduce_zero_label else ("anything",)
            values = " and ".join(map(str, sorted(found)))
            raise ValueError(
                f"{type(self).__name__}: the masks of {self.source} hold only {values}, and 255 is ignored, so that "
                f"{', '.join(classes)} would never be learnt: if 255 stands for the second class, set values=(0, 255); "
                "if this is right, set ignored=255"
            )


@DATASETS.register_module()
class ADE20K(SegmentedImages):
    """The 150 classes of ADE20K (arXiv 1608.05442) as in its scene parsing challenge; 0, other objects, is ignored.

    Args:
        data_root: Folder with `images`, `annotations` and `objectInfo150.txt`.
        split: `training` or `validation`.
        pipeline: Transforms.
        **kwargs: As for `visionattn.data.SegmentedImages`: `test_mode`, `names_file`, `skip_unreadable`.

    Raises:
        FileNotFoundError: If a folder or a file is missing.
    """

    def __init__(self, data_root: str | Path, split: str, pipeline: Sequence[dict[str, Any]], **kwargs: Any) -> None:
        root = Path(data_root)
        names = root / "objectInfo150.txt"
        if not names.is_file():
            raise FileNotFoundError(f"no list of classes {names}")
        # A line a class, the name and its synonyms last; the first line tells the columns.
        classes = _distinct(line.rsplit("\t", 1)[-1].split(",")[0].strip() for line in read_lines(names)[1:] if line)
        images = existing_folder(root / "images" / split, f"split={split!r} of ADE20K")
        files = pair_files(images, root / "annotations" / split)
        super().__init__(files, classes, pipeline, str(root), root=images, reduce_zero_label=True, **kwargs)


@DATASETS.register_module()
class ImageMaskFolder(SegmentedImages):
    """A folder of pictures and one of masks with the same names (`a/1.jpg` and `a/1.png`).

    Args:
        image_root: Folder of the pictures, searched through.
        mask_root: Folder of the masks: `.png`, `.bmp`, `.tif` or `.gif`.
        classes: Names of the classes.
        pipeline: Transforms.
        mask_suffix: What stands at the end of a mask's name besides the picture's, such as `_mask`.
        **kwargs: As for `visionattn.data.SegmentedImages`: `test_mode`, `reduce_zero_label`, `values`, `palette`,
            `ignored`, `names_file`, `skip_unreadable`.

    Raises:
        FileNotFoundError: If a folder or a mask is missing.
        ValueError: If there are no pictures.
    """

    def __init__(
        self,
        image_root: str | Path,
        mask_root: str | Path,
        classes: Sequence[str],
        pipeline: Sequence[dict[str, Any]],
        mask_suffix: str = "",
        **kwargs: Any,
    ) -> None:
        root = existing_folder(image_root, "image_root of ImageMaskFolder")
        files = pair_files(root, Path(mask_root), mask_suffix)
        super().__init__(files, classes, pipeline, str(root), root=root, **kwargs)


def pair_files(images: Path, masks: Path, mask_suffix: str = "") -> list[tuple[Path, Path]]:
    """Every picture below a folder with the mask of the same name.

    Raises:
        FileNotFoundError: If a mask or the folder of masks is missing.
    """
    existing_folder(masks, "folder of masks")
    known = {path.relative_to(masks).with_suffix("").as_posix(): path for path in find_files(masks, MASK_SUFFIXES)}
    pairs = []
    for image in find_files(images):
        if mask_suffix and images == masks and image.stem.endswith(mask_suffix):
            continue
        name = f"{image.relative_to(images).with_suffix('').as_posix()}{mask_suffix}"
        if name not in known:
            others = [path.name for path in (masks / name).parent.glob(f"{glob.escape((masks / name).name)}.*")]
            instead = f"; {others[0]} is of another format" if others else ""
            raise FileNotFoundError(f"no mask {masks / name}{{{','.join(MASK_SUFFIXES)}}} for {image}{instead}")
        pairs.append((image, known[name]))
    return pairs


def _distinct(names: Iterable[str]) -> list[str]:
    """The names with repeated ones numbered: two classes of ADE20K have the same name."""
    counts: dict[str, int] = {}
    distinct = []
    for name in names:
        counts[name] = counts.get(name, 0) + 1
        distinct.append(name if counts[name] == 1 else f"{name} {counts[name]}")
    return distinct
