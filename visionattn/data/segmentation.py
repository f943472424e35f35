"""Pictures with masks of class numbers: what all segmentation data sets share, ADE20K, and plain folders."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.registry import DATASETS
from torch.utils.data import Dataset

from .images import IMAGE_SUFFIXES, read_annotated_image, read_mask
from .pipeline import IGNORED, SegmentationPipeline
from .serialized_list import SerializedList

__all__ = ["ADE20K", "ImageMaskFolder", "SegmentedImages"]

_MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")


class SegmentedImages(Dataset):
    """Pictures, each with a mask file of the same size: grey of any depth, or a palette.

    Args:
        files: Picture and mask of each sample.
        classes: Names of the classes.
        pipeline: Transforms as `visionattn.data.Pipeline` takes them.
        source: Where the files come from, for messages.
        test_mode: Whether samples also hold the original mask, for evaluation.
        reduce_zero_label: Whether 0 in the files is ignored and class numbers start from 1.
        ignored: Values in the files that are neither learnt nor counted.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If there are no pictures or more than 255 classes.
    """

    def __init__(
        self,
        files: Iterable[tuple[Path, Path]],
        classes: Sequence[str],
        pipeline: Sequence[dict[str, Any]],
        source: str,
        test_mode: bool = False,
        reduce_zero_label: bool = False,
        ignored: int | Sequence[int] = IGNORED,
    ) -> None:
        self.metainfo = {"classes": tuple(classes)}
        self.pipeline = SegmentationPipeline(pipeline, original=test_mode)
        self.files = SerializedList((str(image), str(mask)) for image, mask in files)
        self.reduce_zero_label = reduce_zero_label
        self.ignored = [ignored] if isinstance(ignored, int) else list(ignored)
        if not len(self.files):
            raise ValueError(f"{type(self).__name__}: no images in {source}")
        if len(classes) > IGNORED:
            raise ValueError(f"{type(self).__name__}: at most {IGNORED} classes, got {len(classes)}")
        for path in (Path(path) for pair in self.files for path in pair):
            if not path.is_file():
                raise FileNotFoundError(f"{type(self).__name__}: no file {path}")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image_path, mask_path = self.files[int(index)]
        mask = self._classes_of(read_mask(mask_path), mask_path)
        image = read_annotated_image(image_path, mask.shape)
        return self.pipeline(image, mask, int(index), getattr(index, "seed", None))

    def _classes_of(self, values: np.ndarray, path: str) -> np.ndarray:
        """Class numbers, `IGNORED` where there is none, from a file's values."""
        values = values.astype(np.int64)
        ignored = np.isin(values, self.ignored)
        if self.reduce_zero_label:
            ignored |= values == 0
            values = values - 1
        count = len(self.metainfo["classes"])
        wrong = ~ignored & ((values < 0) | (values >= count))
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            first = int(self.reduce_zero_label)
            raise ValueError(
                f"mask {path} has the value {values[row, column] + first} at row {row}, column {column}; allowed are "
                f"{first} to {count - 1 + first} for the {count} classes and {', '.join(map(str, self.ignored))} for "
                f"what is ignored"
            )
        return np.where(ignored, IGNORED, values).astype(np.uint8)


@DATASETS.register_module()
class ADE20K(SegmentedImages):
    """The 150 classes of ADE20K (arXiv 1608.05442) as in its scene parsing challenge; 0, other objects, is ignored.

    Args:
        data_root: Folder with `images`, `annotations` and `objectInfo150.txt`.
        split: `training` or `validation`.
        pipeline: Transforms.
        test_mode: Whether samples also hold the original mask, for evaluation.

    Raises:
        FileNotFoundError: If a folder or a file is missing.
    """

    def __init__(
        self, data_root: str | Path, split: str, pipeline: Sequence[dict[str, Any]], test_mode: bool = False
    ) -> None:
        root = Path(data_root)
        names = root / "objectInfo150.txt"
        if not names.is_file():
            raise FileNotFoundError(f"no list of classes {names}")
        # A line a class, the name and its synonyms last; the first line tells the columns.
        classes = [line.rsplit("\t", 1)[-1].split(",")[0] for line in names.read_text().splitlines()[1:] if line]
        files = _pairs(root / "images" / split, root / "annotations" / split)
        super().__init__(files, classes, pipeline, str(root), test_mode, reduce_zero_label=True)


@DATASETS.register_module()
class ImageMaskFolder(SegmentedImages):
    """A folder of pictures and one of masks with the same names (`a/1.jpg` and `a/1.png`).

    Args:
        image_root: Folder of the pictures, searched through.
        mask_root: Folder of the masks: `.png`, `.bmp` or `.tif`.
        classes: Names of the classes.
        pipeline: Transforms.
        test_mode: Whether samples also hold the original mask, for evaluation.
        reduce_zero_label: Whether 0 in the files is ignored and class numbers start from 1.
        ignored: Values in the files that are neither learnt nor counted.

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
        test_mode: bool = False,
        reduce_zero_label: bool = False,
        ignored: int | Sequence[int] = IGNORED,
    ) -> None:
        files = _pairs(Path(image_root), Path(mask_root))
        super().__init__(files, classes, pipeline, str(image_root), test_mode, reduce_zero_label, ignored)


def _pairs(images: Path, masks: Path) -> list[tuple[Path, Path]]:
    """Every picture below a folder with the mask of the same name."""
    for folder in (images, masks):
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder {folder}")
    pairs = []
    for image in sorted(path for path in images.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES):
        stem = masks / image.relative_to(images).with_suffix("")
        found = [path for suffix in _MASK_SUFFIXES if (path := stem.with_name(stem.name + suffix)).is_file()]
        if not found:
            raise FileNotFoundError(f"no mask {stem}{{{','.join(_MASK_SUFFIXES)}}} for {image}")
        pairs.append((image, found[0]))
    return pairs
