"""Fashion-MNIST (arXiv 1708.07747) from its four idx files, compressed or not, in any folder."""

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.logging import print_log
from mmengine.registry import DATASETS

from .labelled import LabelledImages

__all__ = ["FashionMNIST"]

CLASSES = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
# Where Debian's package dataset-fashion-mnist puts the files.
_SYSTEM_FOLDER = Path("/usr/share/datasets/fashion-mnist")
_PREFIX = {"train": "train", "test": "t10k"}


@DATASETS.register_module()
class FashionMNIST(LabelledImages):
    """60,000 training and 10,000 test images of clothes, 28x28 grey, as RGB.

    The files are looked for in `data_root`, in `data_root/FashionMNIST/raw` (torchvision's place) and where Debian's
    package dataset-fashion-mnist puts them; torchvision downloads them into `data_root` otherwise.

    Args:
        split: `train` or `test`.
        pipeline: Transforms; images come as `(28, 28, 3)` uint8.
        data_root: Folder with the files `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-...`, each with or
            without `.gz`.
        download: Whether to download what is missing.

    Raises:
        ValueError: If `split` is neither, or a file is damaged.
        FileNotFoundError: If the files are missing and `download` is off.
    """

    def __init__(
        self,
        split: str,
        pipeline: Sequence[dict[str, Any]],
        data_root: str | Path = "data/fashion-mnist",
        download: bool = True,
    ) -> None:
        if split not in _PREFIX:
            raise ValueError(f"split must be 'train' or 'test', got {split!r}")
        folder = _find(Path(data_root), split) or (_download(Path(data_root), split) if download else None)
        files = None if folder is None else _files(folder, split)
        if files is None:
            raise FileNotFoundError(f"no Fashion-MNIST files in {data_root}, nor in {_SYSTEM_FOLDER}")
        images, labels = files
        self.images = _read_idx(images, 3)
        targets = _read_idx(labels, 1)
        if len(self.images) != len(targets):
            raise ValueError(f"{images} has {len(self.images)} images, but {labels} has {len(targets)} labels")
        super().__init__(targets, CLASSES, pipeline, str(folder))

    def read(self, index: int) -> np.ndarray:
        return np.repeat(self.images[index][..., None], 3, axis=2)


def _files(folder: Path, split: str) -> tuple[Path, Path] | None:
    found = []
    for kind in ("images-idx3", "labels-idx1"):
        plain = folder / f"{_PREFIX[split]}-{kind}-ubyte"
        packed = plain.with_name(f"{plain.name}.gz")
        if not (plain.is_file() or packed.is_file()):
            return None
        found.append(plain if plain.is_file() else packed)
    return found[0], found[1]


def _find(root: Path, split: str) -> Path | None:
    folders = (root, root / "FashionMNIST" / "raw", _SYSTEM_FOLDER)
    return next((folder for folder in folders if _files(folder, split)), None)


def _download(root: Path, split: str) -> Path:
    from torchvision.datasets import FashionMNIST as Downloader

    print_log(f"downloading Fashion-MNIST to {root}", "current")
    try:
        Downloader(str(root), train=split == "train", download=True)
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"no Fashion-MNIST files in {root}, nor in {_SYSTEM_FOLDER} (Debian: apt install dataset-fashion-mnist), "
            f"and they could not be downloaded: {error}"
        ) from error
    return root / "FashionMNIST" / "raw"


def _read_idx(path: Path, ndim: int) -> np.ndarray:
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    header = 4 + 4 * ndim
    if len(content) < header or content[:4] != bytes((0, 0, 8, ndim)):
        raise ValueError(f"{path} is no idx file of {ndim}-dimensional bytes")
    shape = np.frombuffer(content, ">i4", ndim, offset=4)
    if len(content) - header != shape.prod():
        raise ValueError(f"{path} is truncated: {shape.prod()} bytes of data expected, {len(content) - header} found")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
