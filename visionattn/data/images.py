"""Reads images and masks from files; everything else in the package goes through here."""

import io
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

__all__ = ["IMAGE_SUFFIXES", "decode_image", "image_size", "read_annotated_image", "read_image", "read_mask"]

IMAGE_SUFFIXES = (".bmp", ".jfif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_ORIENTATION = 0x0112  # EXIF's tag
# Undoes an orientation: from the upright picture to the stored one.
_UNDO = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: np.rot90(a.swapaxes(0, 1), 2),
    8: lambda a: np.rot90(a, -1),
}
_PIL_ERRORS = (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def read_image(path: str | Path, upright: bool = True) -> np.ndarray:
    """Reads a picture as `(H, W, 3)` uint8 in RGB.

    Grey is repeated, transparency is left out, and of 16 bits the upper eight count.

    Args:
        path: The file.
        upright: Whether to turn the picture as its EXIF data say; otherwise it comes as stored.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is empty, damaged, too large or no picture.
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
        ValueError: If the content is empty, damaged, too large or no picture.
    """
    if not content:
        raise ValueError(f"cannot read image {name}: the file is empty (0 bytes)")
    flags = cv2.IMREAD_COLOR if upright else cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error as error:  # of more than 2 ** 30 pixels, for one
        raise ValueError(f"cannot read image {name}: {' '.join(str(error).split())}") from error
    if image is None:
        raise ValueError(f"cannot read image {name}: it is truncated or in no format that OpenCV knows")
    image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    if not upright and _is_tiff(content):  # OpenCV turns these even if asked not to
        image = _as_stored(image, _orientation(content))
    return image


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


def read_mask(path: str | Path, colours: Mapping[tuple[int, ...], int] | None = None) -> np.ndarray:
    """Reads a mask of class numbers as `(H, W)` integers, as stored.

    Args:
        path: The file: grey of any depth or kind, or the numbers of a palette.
        colours: What number each colour stands for, in masks that tell classes by colours.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is empty, no picture, in colours without `colours`, or has a colour not among them.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no mask at {path}")
    try:
        with Image.open(path) as image:
            if image.format == "TIFF" and image.getexif().get(_ORIENTATION, 1) != 1:
                # Pillow turns these, and garbles them if they are not compressed.
                raise ValueError("a TIFF with an orientation tag: save it without one")
            mask = np.asarray(image.convert("RGB") if colours is not None else image)
    except _PIL_ERRORS as error:
        raise ValueError(f"cannot read mask {path}: it is empty, truncated, too large or no image ({error})") from error
    if colours is not None:
        return _numbers(mask, colours, path)
    if mask.ndim == 3 and mask.shape[2] == 2:
        mask = mask[..., 0]  # grey with transparency
    if mask.ndim == 3 and (mask[..., :3] == mask[..., :1]).all():
        mask = mask[..., 0]  # grey that was saved as colour
    if mask.ndim == 2 and mask.dtype.kind == "f" and np.isfinite(mask).all() and (mask == mask.round()).all():
        mask = mask.astype(np.int64)
    if mask.ndim != 2 or mask.dtype.kind not in "bui":
        raise ValueError(
            f"mask {path} is in colours or fractions; expected class numbers, as grey or with a palette, or else the "
            "colours of the classes (palette=...)"
        )
    return mask


def image_size(path: str | Path) -> tuple[int, int]:
    """Height and width of an upright picture, from the file's header.

    Raises:
        ValueError: If it is no picture.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            # Pillow gives the size of a TIFF after turning, that of other files before.
            turned = image.format != "TIFF" and image.getexif().get(_ORIENTATION, 1) >= 5
    except _PIL_ERRORS as error:
        raise ValueError(f"cannot read image {path}: {error}") from error
    return (width, height) if turned else (height, width)


def _numbers(mask: np.ndarray, colours: Mapping[tuple[int, ...], int], path: Path) -> np.ndarray:
    codes = mask.astype(np.int64) @ (1 << 16, 1 << 8, 1)
    found, inverse = np.unique(codes, return_inverse=True)
    known = {(red << 16) | (green << 8) | blue: number for (red, green, blue), number in colours.items()}
    for code in found.tolist():
        if code not in known:
            row, column = np.argwhere(codes == code)[0]
            colour = tuple(mask[row, column].tolist())
            raise ValueError(f"mask {path} has the colour {colour} at row {row}, column {column}, of no class")
    return np.array([known[code] for code in found.tolist()], np.int64)[inverse].reshape(codes.shape)


def _is_tiff(content: bytes) -> bool:
    return content[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def _orientation(content: bytes) -> int:
    """The tag of a TIFF, from its header: loading the picture would drop it."""
    with Image.open(io.BytesIO(content)) as image:
        return image.getexif().get(_ORIENTATION, 1)


def _as_stored(image: np.ndarray, orientation: int) -> np.ndarray:
    return np.ascontiguousarray(_UNDO[orientation](image)) if orientation in _UNDO else image
