"""Images from any source: files, folders, videos, URLs, bytes and objects in memory."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from visionattn.data.files import is_hidden
from visionattn.data.images import IMAGE_SUFFIXES, decode_image, read_image

from .video import VIDEO_SUFFIXES, read_frames
from .web import is_url, read_url

__all__ = ["OUTPUT_MARKER", "Picture", "find_images", "list_pictures", "printable"]

OUTPUT_MARKER = ".visionattn-predictions"  # a file in every folder of results, which is never searched for pictures
_MOST_BYTES = 256 << 20  # of one picture from standard input or another open file


@dataclass(frozen=True)
class Picture:
    """An image that is read when needed.

    Args:
        name: What messages and tables call it: a path, an address or `image-<number>`.
        read: Gives it as `(H, W, 3)` uint8 RGB; raises FileNotFoundError or ValueError if it can't be read.
        path: Its file, if it is in one; of a frame, the video.
        seconds: Of a frame, when in the video.
    """

    name: str
    read: Callable[[], np.ndarray]
    path: Path | None = None
    seconds: float | None = None


def list_pictures(inputs: Any) -> Iterator[Picture]:
    """Iterates over the images in an input, or in an iterable of inputs.

    Args:
        inputs: A path of a picture, a video (each frame is a picture) or a folder, which is searched through; an
            `http://` or `https://` address; `-` for standard input; `bytes` or an open binary file with an encoded
            picture; a PIL picture; a uint8 array `(H, W, 3)` in RGB, `(H, W)` or `(H, W, 1)` in grey, or `(H, W, 4)`,
            whose transparency is left out; a `Picture`; or an iterable of these.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If there are no pictures in a folder.
        TypeError: If an input is of another kind.
    """
    kinds = (Picture, str, os.PathLike, bytes, Image.Image, np.ndarray)
    single = isinstance(inputs, kinds) or hasattr(inputs, "read")
    if not single and not isinstance(inputs, Iterable):
        raise TypeError(
            "an input must be a path, an address, bytes, a PIL picture, an array or an iterable of these, got a "
            f"{type(inputs).__name__}"
        )
    for number, item in enumerate([inputs] if single else inputs):
        yield from _pictures(item, f"image-{number}")


def find_images(folder: str | Path) -> list[Path]:
    """The pictures below a folder, sorted by path.

    Hidden files and folders, what operating systems leave behind, and folders of earlier predictions are passed over.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If there are no pictures in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {printable(folder)}")
    found = sorted(_walk(folder, ()))
    if not found:
        why = f"looked for {', '.join(IMAGE_SUFFIXES)}"
        if (folder / OUTPUT_MARKER).exists():
            why = "it holds predictions"
        raise ValueError(f"no images in {printable(folder)} ({why})")
    return found


def printable(path: str | Path) -> str:
    """A path as valid Unicode, also where the locale could not decode its bytes."""
    return os.fsencode(path).decode("utf-8", "replace")


def _walk(folder: Path, above: tuple[str, ...]) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in above or (folder / OUTPUT_MARKER).exists():
        return
    for entry in os.scandir(folder):
        if is_hidden(entry.name):
            continue
        if entry.is_dir():
            yield from _walk(Path(entry.path), (*above, real))
        elif entry.name.lower().endswith(IMAGE_SUFFIXES):
            yield Path(entry.path)


def _pictures(item: Any, name: str) -> Iterator[Picture]:
    """The pictures of one input; its name if it has none of its own."""
    if isinstance(item, Picture):
        yield item
    elif isinstance(item, np.ndarray):
        yield Picture(name, partial(_from_array, item, name))
    elif isinstance(item, Image.Image):
        yield Picture(name, partial(_from_pil, item, name))
    elif isinstance(item, bytes):
        yield Picture(name, partial(decode_image, item, name))
    elif hasattr(item, "read"):
        yield _from_stream(item, name)
    elif isinstance(item, str) and is_url(item):
        yield Picture(item, partial(_from_url, item))
    elif item == "-":
        yield _from_stream(sys.stdin.buffer, "standard input")
    elif isinstance(item, (str, os.PathLike)):
        yield from _from_path(Path(item))
    else:
        raise TypeError(
            f"an input must be a path, an address, bytes, a PIL picture or an array, got a {type(item).__name__}"
        )


def _from_path(path: Path) -> Iterator[Picture]:
    if path.is_dir():
        for file in find_images(path):
            yield Picture(printable(file), partial(read_image, file), file)
    elif path.suffix.lower() in VIDEO_SUFFIXES:
        for number, (seconds, read) in enumerate(read_frames(path)):
            yield Picture(f"{printable(path)}#{number}", read, path, seconds)
    else:
        yield Picture(printable(path), partial(read_image, path), path)


def _from_stream(stream: Any, name: str) -> Picture:
    content = stream.read(_MOST_BYTES + 1)
    name = str(getattr(stream, "name", name)) if name != "standard input" else name

    def read() -> np.ndarray:
        if len(content) > _MOST_BYTES:
            raise ValueError(f"cannot read image {name}: it has more than {_MOST_BYTES >> 20} MB")
        return decode_image(content, name)

    return Picture(name, read)


def _from_url(url: str) -> np.ndarray:
    return decode_image(read_url(url), url)


def _from_pil(image: Image.Image, name: str) -> np.ndarray:
    try:
        upright = ImageOps.exif_transpose(image)
        # Pillow cuts off what is above 255 where the upper eight of 16 bits count.
        deep = upright.mode.startswith("I")
        return _from_array(np.asarray(upright), name) if deep else np.array(upright.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"cannot read image {name}: {error}") from error


def _from_array(array: np.ndarray, name: str) -> np.ndarray:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.dtype in (np.uint16, np.int32) and array.ndim == 2 and array.min() >= 0 and array.max() < 1 << 16:
        array = (array >> 8).astype(np.uint8)
    shape = array.shape[2:] in ((), (3,), (4,)) and array.ndim > 1
    if array.dtype != np.uint8 or not shape or array.size == 0:
        raise ValueError(
            f"{name} must be a uint8 array (H, W, 3) in RGB or (H, W) in grey, got {array.dtype} {tuple(array.shape)}"
        )
    return np.ascontiguousarray(np.repeat(array[..., None], 3, 2) if array.ndim == 2 else array[..., :3])
