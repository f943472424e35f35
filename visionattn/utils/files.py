"""Reading and writing files so that a damaged one is named, no code in it runs, and none is ever left half-written."""

import hashlib
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

__all__ = ["read_checkpoint", "remove_leftovers", "replacing", "sha256", "verify_file"]

_TEMPORARY = ".part-"


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Gives a temporary name beside `path`, for a file or a new folder, and renames it if the block ends well.

    A process killed at any moment leaves `path` as it was or complete.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{_TEMPORARY}{os.getpid()}-{path.name}")
    try:
        yield temporary
        if temporary.is_file():
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        _remove(temporary)


def remove_leftovers(folder: str | Path) -> None:
    """Removes what killed processes left unfinished in a folder."""
    for leftover in Path(folder).glob(f"{_TEMPORARY}*"):
        _remove(leftover)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sha256(path: str | Path) -> str:
    """The sha256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def verify_file(path: str | Path) -> None:
    """Checks that a file of weights is there, not empty, and what its name says: `<name>-<8+ hex of sha256>.<ending>`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is empty, or its sha256 is not the one in its name.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes)")
    if stated := re.search(r"-([0-9a-f]{8,64})$", path.stem):
        actual = sha256(path)
        if not actual.startswith(stated[1]):
            raise ValueError(
                f"{path} is damaged or was changed: its name says sha256 {stated[1]}, "
                f"its content has {actual[: len(stated[1])]}"
            )


def read_checkpoint(path: str | Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Reads a checkpoint without running anything in it: safetensors, or a PyTorch file of plain data.

    Args:
        path: The file; a sha256 in its name is checked.
        device: Where the tensors go.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is empty, truncated, of another kind, not what its name says, or holds code.
    """
    path = Path(path)
    verify_file(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path, device=str(device))
        # Mapped files cost no reading until a tensor is used; only zipped ones can be.
        checkpoint = torch.load(path, map_location=device, weights_only=True, mmap=zipfile.is_zipfile(path))
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or no safetensors file: {error}") from error
    except pickle.UnpicklingError as error:
        if found := re.search(r"(?:GLOBAL|global:?) ([\w.]+)", str(error)):
            raise ValueError(
                f"{path} was refused: it holds code ({found[1]}), and only plain weights are read"
            ) from error
        raise ValueError(f"{path} is truncated or no checkpoint") from error
    except (RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"{path} is truncated or no checkpoint: {str(error).splitlines()[0]}") from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f"{path} holds a {type(checkpoint).__name__}, not a dict of weights")
    return checkpoint
