"""Finds out what the values or colours in a folder of masks mean."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .images import read_mask
from .pipeline import IGNORED

__all__ = ["scan_masks"]

_SCANNED = 500


def scan_masks(files: Sequence[Path], names: Sequence[str] | None = None) -> dict[str, Any]:
    """Arguments of a data set for masks: `classes`, and `values` or `palette` if the masks need them.

    Class numbers 0, 1, 2, ... stand for themselves, with 255 ignored; two values are background and object; any others
    are numbered in their order. Colours are numbered from the darkest on.

    Args:
        files: The masks; of many, some are looked at.
        names: Names of the classes, if they are known.

    Raises:
        ValueError: If there are none, one cannot be read, or their values are too many or not as many as names.
    """
    if not files:
        raise ValueError("there are no masks")
    chosen = [files[place] for place in np.linspace(0, len(files) - 1, min(_SCANNED, len(files))).astype(int).tolist()]
    coloured = next((file for file in chosen if _is_coloured(file)), None)
    values: set[Any] = set()
    for file in chosen:
        values |= _colours(file) if coloured else set(np.unique(read_mask(file)).tolist())
        if len(values) > IGNORED + 1:
            raise ValueError(f"the masks up to {file} have more than {IGNORED + 1} values: they are no class numbers")
    if coloured:
        palette = sorted(values, key=lambda colour: (sum(colour), colour))
        return {"classes": _names(names, len(palette), coloured, palette), "palette": palette}
    found = sorted(values)
    if len(found) == 2 and found[0] == 0:
        classes = _names(names, 2, files[0]) if names else ["background", "object"]
        return {"classes": classes, **({} if found[1] == 1 else {"values": found})}
    plain = [value for value in found if value != IGNORED]
    count = max(len(names) if names else 0, (plain[-1] + 1) if plain else 0)
    contiguous = plain == list(range(len(plain))) or (names is not None and count == len(names))
    if contiguous:
        return {"classes": _names(names, count, files[0])}
    return {"classes": _names(names, len(found), files[0], found), "values": found}


def _is_coloured(file: Path) -> bool:
    try:
        read_mask(file)
    except ValueError as error:
        if "in colours" not in str(error):
            raise
        return True
    return False


def _colours(file: Path) -> set[tuple[int, int, int]]:
    with Image.open(file) as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3).astype(np.int64)
    codes = np.unique(pixels @ (1 << 16, 1 << 8, 1)).tolist()
    return {(code >> 16, code >> 8 & 255, code & 255) for code in codes}


def _names(names: Sequence[str] | None, count: int, file: Path, found: Sequence[Any] | None = None) -> list[str]:
    if names is None:
        return [str(value) for value in (found or range(count))]
    if len(names) != count:
        raise ValueError(f"the list of classes has {len(names)} names, but masks such as {file} have {count} classes")
    return list(names)
