"""Webdataset's shards with access by number: tar files of `key.jpg` and `key.cls`, and an index of where each begins.

webdataset streams its shards; here a sample is a number as in every data set of ours, so that shuffling, augmentation
and resumed runs follow from (seed, epoch, sample) alone. Headers are read once, pictures when they are asked for.
"""

import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from visionattn.utils.files import replacing

from .images import IMAGE_SUFFIXES

__all__ = ["ShardIndex", "read_index"]


class ShardIndex(NamedTuple):
    """Where the pictures of shards are.

    Attributes:
        shards: Names of the files.
        sizes: Their bytes, by which a change is noticed.
        shard: Number of the file of each picture, `(N,)`.
        offset: Where in it the picture begins, `(N,)`.
        length: Bytes of the picture, `(N,)`.
        label: Its class number, `(N,)`.
        key: Its name in the shard, `(N,)`.
    """

    shards: np.ndarray
    sizes: np.ndarray
    shard: np.ndarray
    offset: np.ndarray
    length: np.ndarray
    label: np.ndarray
    key: np.ndarray


def read_index(
    files: Sequence[Path], index_file: Path | None = None, image_key: str | None = None, label_key: str = "cls"
) -> ShardIndex:
    """The index of shards, of a file that keeps it or of their headers.

    Args:
        files: The shards.
        index_file: An `.npz` that keeps the index; written where it is missing or does not fit the shards' sizes.
        image_key: Ending of the pictures, such as `jpg`; by default every one that pictures have.
        label_key: Ending of what holds the class number: `cls`, or `json` and the name of a field as `json:label`.

    Raises:
        ValueError: If a shard is no tar file, or a picture has no class number.
    """
    sizes = np.array([file.stat().st_size for file in files], np.int64)
    names = np.array([file.name for file in files])
    if index_file is not None and index_file.is_file():
        with np.load(index_file, allow_pickle=False) as kept:
            fields = {name: kept[name] for name in ShardIndex._fields if name in kept}
        same = len(fields) == len(ShardIndex._fields) and np.array_equal(fields["shards"], names)
        if same and np.array_equal(fields["sizes"], sizes):
            return ShardIndex(**fields)
    rows = [(number, *row) for number, file in enumerate(files) for row in _scan(file, image_key, label_key)]
    shard, offset, length, label, key = list(zip(*rows, strict=True)) or [()] * 5
    numbers = np.array([shard, offset, length, label], np.int64)
    index = ShardIndex(names, sizes, numbers[0], numbers[1], numbers[2], numbers[3], np.array(key, np.str_))
    if index_file is not None:
        with replacing(index_file) as temporary, open(temporary, "wb") as out:
            np.savez(out, allow_pickle=False, **index._asdict())
    return index


def _scan(file: Path, image_key: str | None, label_key: str) -> Iterator[tuple[int, int, int, str]]:
    """Offset, length, label and key of each picture of a shard, in the shard's order."""
    endings = IMAGE_SUFFIXES if image_key is None else tuple(f".{key}" for key in image_key.split(";"))
    ending, _, field = label_key.partition(":")
    pictures: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(file, "r:") as shard:
            for member in shard:
                folder, _, name = member.name.rpartition("/")
                stem, _, extension = name.partition(".")
                key = f"{folder}/{stem}" if folder else stem
                if not member.isfile():
                    continue
                if f".{extension.lower()}".endswith(endings):
                    pictures[key] = (member.offset_data, member.size)
                elif extension == ending:
                    stream = shard.extractfile(member)
                    assert stream is not None  # of a file
                    labels[key] = _label(stream.read(), field, f"{file}: {member.name}")
    except tarfile.TarError as error:
        raise ValueError(f"{file} is no uncompressed tar file, as shards are: {error}") from error
    for key, (offset, length) in pictures.items():
        if key not in labels:
            raise ValueError(f"{file}: {key} has a picture, but no {key}.{ending} with its class number")
        yield offset, length, labels[key], key


def _label(content: bytes, field: str, where: str) -> int:
    try:
        value: Any = json.loads(content)
        value = value[field] if field else value
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"got {value!r}")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{where} holds no class number{f' named {field!r}' if field else ''}: {error}") from error
    return value
