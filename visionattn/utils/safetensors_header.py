"""Reads the header of a safetensors file, with limits: its tensors and metadata."""

import json
from pathlib import Path
from typing import Any

__all__ = ["MAX_HEADER", "read_header", "read_metadata"]

# Thousands of tensors with their metadata take well under a megabyte; the library itself would accept 100 MB of blanks.
MAX_HEADER = 16 << 20
_METADATA = "__metadata__"


def read_header(path: str | Path) -> dict[str, Any]:
    """Reads and checks the header.

    Args:
        path: A safetensors file.

    Returns:
        `{tensor: {"dtype", "shape", "data_offsets"}}`, and under `__metadata__` texts by name if there are any.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no safetensors file, its header is too large, names no tensor, or does not fit the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    total = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if total < 8 or length > total - 8:
            raise ValueError(f"{path} is truncated or no safetensors file: it has {total:,} bytes")
        if length > MAX_HEADER:
            raise ValueError(f"{path} was refused: its header has {length:,} bytes, at most {MAX_HEADER:,} are read")
        text = file.read(length)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no safetensors file: its header is invalid JSON") from error
    ends = _ends(header)
    if ends is None:
        raise ValueError(f"{path} is no safetensors file: its header does not describe tensors")
    if not ends:
        raise ValueError(f"{path} holds no weights: its header names no tensor")
    if max(ends) != total - 8 - length:
        raise ValueError(
            f"{path} is truncated or damaged: its header describes {max(ends):,} bytes of weights, "
            f"{total - 8 - length:,} follow it"
        )
    return header


def _ends(header: Any) -> list[int] | None:
    """The end offset of each tensor; None if the header is invalid."""
    if not isinstance(header, dict):
        return None
    metadata = header.get(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        return None
    try:
        return [int(tensor["data_offsets"][1]) for name, tensor in header.items() if name != _METADATA]
    except (TypeError, KeyError, IndexError, ValueError):
        return None


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata of a safetensors file, by name.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: As `read_header`.
    """
    return read_header(path).get(_METADATA, {})
