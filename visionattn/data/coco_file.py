"""Reads COCO annotation files (arXiv 1405.0312) and checks every value: an error names the file and the entry."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from .files import read_json

__all__ = ["LISTS", "check_number", "check_outline", "read_coco"]

_LIMIT = 1e6  # pixels; a coordinate beyond is a fault, and drawing it would take all memory
_NEEDED = {
    "images": ("id", "file_name"),
    "categories": ("id", "name"),
    "annotations": ("id", "image_id", "category_id", "bbox"),
}
LISTS = tuple(_NEEDED)  # that a file has
Record = dict[str, Any]


def read_coco(path: str | Path) -> dict[str, list[Record]]:
    """The lists `images`, `categories` and `annotations` of a file, outlines unchecked.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If anything in it is missing, of a wrong type or out of range.
    """
    content = read_json(path)
    missing = [key for key in _NEEDED if not isinstance(content, dict) or not isinstance(content.get(key), list)]
    if missing:
        raise ValueError(f"{path} is no COCO file: it has no list {' and no list '.join(missing)}")
    for kind in _NEEDED:
        _check_records(content[kind], kind, path)
    if not content["categories"]:
        raise ValueError(f"{path} has no categories")
    for image in content["images"]:
        _check_image(image, f"{path}: image {image['id']}")
    for category in content["categories"]:
        if isinstance(category["id"], str):
            raise ValueError(f"{path}: categories: id must be an integer, got {category['id']!r}")
        _check_text(category, "name", f"{path}: category {category['id']}")
    images = {image["id"] for image in content["images"]}
    categories = {category["id"] for category in content["categories"]}
    for annotation in content["annotations"]:
        _check_annotation(annotation, images, categories, f"{path}: annotation {annotation['id']}")
    return content


def check_outline(outline: Any, size: tuple[int, int] | None, where: str) -> list[list[float]] | Record:
    """Polygons of at least three corners, or run lengths `{'size', 'counts'}`.

    Args:
        outline: An annotation's `segmentation`.
        size: Height and width of the picture, if known.
        where: What to call the annotation.

    Raises:
        ValueError: If it is neither, or does not fit the picture.
    """
    if isinstance(outline, list) and outline:
        return _check_polygons(outline, where)
    if isinstance(outline, dict) and {"size", "counts"} <= outline.keys():
        return _check_runs(outline, size, where)
    found = "an empty segmentation" if outline == [] else "no segmentation of polygons or run lengths"
    raise ValueError(f"{where} has {found}, which masks=True needs")


def check_number(value: Any) -> bool:
    """Whether a value is a finite number that a picture may have as a coordinate."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _LIMIT


def _check_records(records: list[Any], kind: str, path: str | Path) -> None:
    seen = set()
    for number, record in enumerate(records):
        where = f"{path}: {kind}[{number}]"
        if not isinstance(record, dict):
            raise ValueError(f"{where} must be an object with {', '.join(_NEEDED[kind])}, got {_short(record)}")
        if lacking := [key for key in _NEEDED[kind] if key not in record]:
            raise ValueError(f"{where} (id {record.get('id')}) has no {', '.join(lacking)}")
        for key in ("id", "image_id", "category_id"):
            value = record.get(key, 0)
            if isinstance(value, float) and value.is_integer():
                record[key] = value = int(value)
            if isinstance(value, bool) or not isinstance(value, (int, str)):
                raise ValueError(f"{where}: {key} must be an integer, got {_short(value)}")
        if record["id"] in seen:
            raise ValueError(f"{path}: two {kind} have the id {record['id']!r}")
        seen.add(record["id"])


def _check_image(image: Record, where: str) -> None:
    _check_text(image, "file_name", where)
    for side in ("height", "width"):
        value = image.get(side) or 0  # 0 and null stand for an unknown size
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value // 1 or value < 0:
            raise ValueError(f"{where}: {side} must be a whole number of pixels, got {_short(image[side])}")
        image[side] = int(value)


def _check_annotation(annotation: Record, images: set[Any], categories: set[Any], where: str) -> None:
    if annotation["image_id"] not in images:
        raise ValueError(f"{where} names image {annotation['image_id']!r}, which the file does not have")
    if annotation["category_id"] not in categories:
        raise ValueError(f"{where} has category {annotation['category_id']!r}, which the file does not have")
    box = annotation["bbox"]
    if not isinstance(box, list) or len(box) != 4 or not all(map(check_number, box)):
        raise ValueError(f"{where}: bbox must be four numbers [x, y, width, height] in pixels, got {_short(box)}")
    crowd = annotation.get("iscrowd")
    if crowd not in (None, 0, 1):
        raise ValueError(f"{where}: iscrowd must be 0 or 1, got {crowd!r}")
    area = annotation.get("area")
    if area is not None and not (_is_finite(area) and area >= 0):
        raise ValueError(f"{where}: area must be a number of pixels, got {_short(area)}")


def _check_text(record: Record, key: str, where: str) -> None:
    if not isinstance(record[key], str) or not record[key]:
        raise ValueError(f"{where}: {key} must be text, got {_short(record[key])}")


def _check_polygons(polygons: list[Any], where: str) -> list[list[float]]:
    if not all(isinstance(polygon, list) for polygon in polygons):
        raise ValueError(f"{where}: polygons must be lists in a list [[x1, y1, ...], ...], got {_short(polygons)}")
    # [[x, y], [x, y], ...] in place of [[x, y, x, y, ...]], nested or not.
    nested = any(isinstance(value, list) for polygon in polygons for value in polygon)
    if nested or (len(polygons) > 2 and all(len(polygon) == 2 for polygon in polygons)):
        raise ValueError(f"{where}: a polygon must be flat, [x1, y1, x2, y2, ...], got pairs {_short(polygons)}")
    for polygon in polygons:
        if not all(map(check_number, polygon)):
            raise ValueError(f"{where}: a polygon must be of numbers in pixels, got {_short(polygon)}")
        if len(polygon) % 2:
            raise ValueError(f"{where}: a polygon has an odd number of coordinates")
    whole = [polygon for polygon in polygons if len(polygon) >= 6]
    if not whole:
        raise ValueError(f"{where}: no polygon has three corners, got {_short(polygons)}")
    return whole


def _check_runs(runs: Record, size: tuple[int, int] | None, where: str) -> Record:
    shape, counts = runs["size"], runs["counts"]
    if not isinstance(shape, list) or len(shape) != 2 or not all(isinstance(s, int) and 0 < s <= _LIMIT for s in shape):
        raise ValueError(f"{where}: its run lengths need size [height, width], got {_short(shape)}")
    if size is not None and tuple(shape) != size:
        raise ValueError(f"{where}: its run lengths are for a picture of {shape}, not {list(size)}")
    if isinstance(counts, str):
        lengths = _unpack_runs(counts, where)
    elif isinstance(counts, list) and all(isinstance(c, int) and not isinstance(c, bool) for c in counts):
        lengths = counts
    else:
        raise ValueError(f"{where}: counts of run lengths must be integers or COCO's text, got {_short(counts)}")
    if min(lengths, default=0) < 0:
        raise ValueError(f"{where}: it has a negative run length, {min(lengths)}")
    if sum(lengths) != math.prod(shape):
        raise ValueError(f"{where}: its run lengths add up to {sum(lengths)} pixels, not {math.prod(shape)}")
    return runs


def _unpack_runs(text: str, where: str) -> list[int]:
    """Decodes COCO's compressed run lengths: five bits a character, and differences from the third number on."""
    codes = np.frombuffer(text.encode("ascii", "replace"), np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero((codes & 32) == 0)
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or not len(ends) or ends[-1] != len(codes) - 1:
        raise ValueError(f"{where}: its run lengths are damaged, got {_short(text)}")
    lengths: list[int] = []
    for start, stop in pairwise([0, *(ends + 1).tolist()]):
        letters = codes[start:stop].tolist()
        value = sum((letter & 31) << (5 * place) for place, letter in enumerate(letters))
        if letters[-1] & 16:
            value -= 1 << (5 * len(letters))
        lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
    return lengths


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
