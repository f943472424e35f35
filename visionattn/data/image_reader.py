"""Pictures in containers, as data sets of millions come: webdataset's shards, tar files, Hugging Face's data sets."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.registry import DATASETS

from .images import decode_image
from .labelled import LabelledImages
from .shards import read_index

__all__ = ["ImageReader"]


@DATASETS.register_module()
class ImageReader(LabelledImages):
    """Labelled pictures that are not files of their own. A sample is `{'inputs', 'data_samples'}` as of `ImageFolder`.

    Every picture has a number, so shuffling, augmentation and resumed runs are those of other data sets, whatever the
    number of workers and processes.

    Args:
        reader: What holds the pictures.
            `wds`: webdataset's shards, tar files of `key.jpg` and `key.cls`, read by an index (no package is needed).
            `tar`: tar files with a folder a class, or a tar file a class, by timm's reader.
            `hfds`: a Hugging Face data set on disk or of the hub, by timm's reader; needs the extra `[large]`.
        data_root: Folder of the shards or tar files, one such file, or the name of a Hugging Face data set.
        pipeline: Transforms.
        split: `wds`: what the names of shards begin with, such as `train` of `train-000.tar`; all without it. `hfds`:
            the split, `train` without it.
        classes: Names of the classes in the order of their numbers; without it those that the container names, or
            the numbers.
        index_file: `wds`: an `.npz` that keeps the index, so that headers of shards are read once.
        label_key: Where the class number is: `wds`: `cls`, or `json:label` for a field of `key.json`; `hfds`: the
            column, `label` without it.
        image_key: `wds`: the ending of pictures; `hfds`: the column, `image` without it.

    Raises:
        FileNotFoundError: If there are no such files.
        ImportError: If a package is missing.
        ValueError: If the reader is unknown, there are no pictures, or a picture has no class number.
    """

    def __init__(
        self,
        reader: str,
        data_root: str | Path,
        pipeline: Sequence[dict[str, Any]],
        split: str | None = None,
        classes: Sequence[str] | None = None,
        index_file: str | Path | None = None,
        label_key: str | None = None,
        image_key: str | None = None,
    ) -> None:
        if reader not in _OPEN:
            raise ValueError(f"reader must be one of {', '.join(_OPEN)}, got {reader!r}")
        for name, value in (("index_file", index_file), ("label_key", label_key), ("image_key", image_key)):
            if value is not None and (reader == "tar" or (reader == "hfds" and name == "index_file")):
                raise ValueError(f"{name} is nothing that reader={reader!r} takes, got {value!r}")
        self.source = str(data_root)
        keys = {"label_key": label_key, "image_key": image_key}
        self.pictures = _OPEN[reader](Path(data_root), split, None if index_file is None else Path(index_file), keys)
        labels = self.pictures.labels
        count = int(labels.max(initial=-1)) + 1
        names = classes or self.pictures.classes or [str(number) for number in range(count)]
        super().__init__(labels, names, pipeline, str(data_root))

    def describe(self, index: int) -> str:
        return f"{self.source}: {self.pictures.name(int(index))}"

    def read(self, index: int) -> np.ndarray:
        return decode_image(self.pictures.content(int(index)), self.describe(index))


class _Shards:
    """Pictures of webdataset's shards."""

    def __init__(self, root: Path, split: str | None, index_file: Path | None, keys: dict[str, str | None]) -> None:
        self.files = _tar_files(root, split)
        self.index = read_index(self.files, index_file, keys["image_key"], keys["label_key"] or "cls")
        self.labels, self.classes = self.index.label, None

    def name(self, number: int) -> str:
        return f"{self.index.shards[self.index.shard[number]]}: {self.index.key[number]}"

    def content(self, number: int) -> bytes:
        # Opened anew each time: handles must not be shared by the processes of a data loader.
        with open(self.files[self.index.shard[number]], "rb") as shard:
            shard.seek(int(self.index.offset[number]))
            return shard.read(int(self.index.length[number]))


class _TimmPictures:
    """Pictures that one of timm's readers opens."""

    reader: Any

    def content(self, number: int) -> bytes:
        with self.reader[number][0] as stream:
            content: bytes = stream.read()
        return content


class _Tars(_TimmPictures):
    """Pictures of tar files with a folder a class, or of one tar file a class, by timm's reader."""

    def __init__(self, root: Path, split: str | None, index_file: Path | None, keys: dict[str, str | None]) -> None:
        from timm.data.readers.reader_image_in_tar import ReaderImageInTar

        if split is not None:
            root = root / split
        _tar_files(root, None)
        self.reader = ReaderImageInTar(str(root), cache_tarfiles=False, cache_tarinfo=False)
        self.labels = np.asarray(self.reader.targets, np.int64)
        self.classes = sorted(self.reader.class_name_to_idx, key=self.reader.class_name_to_idx.__getitem__)

    def name(self, number: int) -> str:
        return str(self.reader.filename(number))


class _HuggingFace(_TimmPictures):
    """Pictures of a Hugging Face data set, by timm's reader."""

    def __init__(self, root: Path, split: str | None, index_file: Path | None, keys: dict[str, str | None]) -> None:
        from timm.data.readers.reader_hfds import ReaderHfds

        image, label = keys["image_key"] or "image", keys["label_key"] or "label"
        self.reader = ReaderHfds(str(root), split=split or "train", input_key=image, target_key=label)
        self.labels = np.fromiter(self.reader.iter_targets(), np.int64)
        named = self.reader.class_to_idx
        self.classes = sorted(named, key=named.__getitem__) or None

    def name(self, number: int) -> str:
        return f"picture {number}"


_OPEN: dict[str, Any] = {"wds": _Shards, "tar": _Tars, "hfds": _HuggingFace}


def _tar_files(root: Path, prefix: str | None) -> list[Path]:
    """One tar file, or those in a folder whose names begin so, by name."""
    if root.is_file():
        return [root]
    found = sorted(root.glob(f"{prefix or ''}*.tar"))
    if not found:
        raise FileNotFoundError(f"no file {root}/{prefix or ''}*.tar (data_root of ImageReader)")
    return found
