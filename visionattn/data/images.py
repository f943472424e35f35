"""What all data sets of labelled pictures share, and the one way a picture or a mask is read from a file."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError
from torch.utils.data import Dataset

__all__ = ["IMAGE_SUFFIXES", "LabelledImages", "decode_image", "read_annotated_image", "read_image", "read_mask"]

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


def read_image(path: str | Path, upright: bool = True) -> np.ndarray:
    """Reads a picture as `(H, W, 3)` uint8 in RGB.

    Grey is repeated, transparency is left out, and of 16 bits the upper eight count.

    Args:
        path: The file.
        upright: Whether to turn the picture as its EXIF data say; otherwise it comes as stored.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is empty or no picture.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no image at {path}")
    return decode_image(path.read_bytes(), path, upright)


def decode_image(content: bytes, name: object, upright: bool = True) -> np.ndarray:
    """Decodes the content of an image file as `read_image` does.

    Args:
        content: The bytes of the file.
        name: What messages call it.
        upright: As for `read_image`.

    Raises:
        ValueError: If the content is empty or no picture.
    """
    if not content:
        raise ValueError(f"cannot read image {name}: the file is empty (0 bytes)")
    flags = cv2.IMREAD_COLOR if upright else cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error as error:  # such as a header that states more pixels than OpenCV reads
        raise ValueError(f"cannot read image {name}: {error.err}") from error
    if image is None:
        raise ValueError(f"cannot read image {name}: it is truncated or in no format that OpenCV knows")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def read_annotated_image(path: str | Path, size: tuple[int, int] | None) -> np.ndarray:
    """Reads a picture in the orientation that its annotation refers to.

    That is the stored one, as in COCO and torchvision; only if the annotation was made on a picture of another size,
    and turning it as its EXIF data say gives that size, is it turned.

    Args:
        path: The file.
        size: Height and width that the annotation tells; none if it tells none.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no picture, or has another size.
    """
    image = read_image(path, upright=False)
    if size is not None and image.shape[:2] != size:
        stored, image = image.shape[:2], read_image(path)
        if image.shape[:2] != size:
            raise ValueError(
                f"{path} is {stored[1]}x{stored[0]} pixels, but its annotation was made on {size[1]}x{size[0]}"
            )
    return image


def read_mask(path: str | Path) -> np.ndarray:
    """Reads a mask of class numbers as `(H, W)` integers: grey of any depth, or the numbers of a palette.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is empty, no picture, or in colours.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no mask at {path}")
    try:
        with Image.open(path) as image:
            mask = np.asarray(image)
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"cannot read mask {path}: it is empty, truncated or no image") from error
    if mask.ndim == 3 and (mask[..., :3] == mask[..., :1]).all():
        mask = mask[..., 0]  # grey that was saved as colour
    if mask.ndim != 2 or mask.dtype.kind not in "bui":
        raise ValueError(f"mask {path} is in colours; expected class numbers, as grey or with a palette")
    return mask


class LabelledImages(Dataset, ABC):
    """Pictures with one label each. A sample is `{'inputs': (3, H, W) uint8, 'data_samples': {'label', 'index'}}`.

    Args:
        labels: Class number of each picture, `(N,)`.
        classes: Names of the classes.
        pipeline: Transforms as `visionattn.data.Pipeline` takes them.
        source: Where the pictures come from, for messages.

    Raises:
        ValueError: If there are no pictures, or a label is not a class number.
    """

    def __init__(
        self, labels: np.ndarray, classes: Sequence[str], pipeline: Sequence[dict[str, Any]], source: str
    ) -> None:
        from .pipeline import Pipeline  # albumentations, which those who only read pictures do without

        self.labels = np.asarray(labels, np.int64)
        self.metainfo = {"classes": tuple(classes)}
        self.pipeline = Pipeline(pipeline)
        if not len(self.labels):
            raise ValueError(f"{type(self).__name__}: no images in {source}")
        wrong = np.flatnonzero((self.labels < 0) | (self.labels >= len(classes)))
        if wrong.size:
            first = int(wrong[0])
            raise ValueError(
                f"{type(self).__name__}: {wrong.size} labels in {source} are out of range 0..{len(classes) - 1}; "
                f"the first is {self.labels[first]} at image {self.describe(first)}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        inputs = self.pipeline(self.read(index), seed=getattr(index, "seed", None))
        return {"inputs": inputs, "data_samples": {"label": int(self.labels[index]), "index": int(index)}}

    def describe(self, index: int) -> str:
        """Names a picture in messages."""
        return str(index)

    @abstractmethod
    def read(self, index: int) -> np.ndarray:
        """The picture, `(H, W, 3)` uint8 in RGB."""
