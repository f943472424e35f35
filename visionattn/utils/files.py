"""Reads and writes files: damaged ones are named, no code in them runs, and none is left half-written."""

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

from .safetensors_header import read_metadata

__all__ = ["DATA_SHA256", "read_checkpoint", "remove_leftovers", "replacing", "sha256", "stated_hash", "verify_file"]

_TEMPORARY = ".part-"
# Under this name in a safetensors file's metadata: the sha256 of what follows the header.
DATA_SHA256 = "visionattn.sha256"


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields a temporary name beside `path`, for a file or folder, and renames it if the block succeeds.

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


def sha256(path: str | Path, start: int = 0) -> str:
    """The sha256 of a file's content from the byte `start` on, in hexadecimal."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        file.seek(start)
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def stated_hash(path: str | Path) -> str | None:
    """The first digits of a sha256 in a file name, `<name>-<8+ hex digits>.<extension>`; None if there are none.

    Decimal digits alone are a date or a number, not a hash.
    """
    found = re.search(r"-([0-9a-f]{8,64})$", Path(path).stem)
    return found[1] if found and not found[1].isdecimal() else None


def verify_file(path: str | Path) -> None:
    """Checks that a weight file exists, is not empty, and matches its name or header.

    The hash is the one in the name (`stated_hash`), or else the one that `publish` wrote into the header.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is empty, or its sha256 is not the stated one.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes)")
    metadata = read_metadata(path) if path.suffix == ".safetensors" else {}
    where, stated, start = "name", stated_hash(path), 0
    if stated is None and DATA_SHA256 in metadata:
        where, stated = "header", metadata[DATA_SHA256]
        with path.open("rb") as file:
            start = 8 + int.from_bytes(file.read(8), "little")
    if stated is not None and not (actual := sha256(path, start)).startswith(stated):
        raise ValueError(
            f"{path} is damaged or was changed: its {where} says sha256 {stated[:16]}, its content has {actual[:16]}"
        )


def read_checkpoint(path: str | Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Reads a checkpoint without running anything in it: safetensors, or a PyTorch file of plain data.

    Args:
        path: The file; a sha256 in its name or header is checked.
        device: Where the tensors go.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is empty, truncated, of another kind, not what its name says, or holds objects that only code
            could build.
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
        if found := _refused_objects(path, str(error)):
            raise ValueError(
                f"{path} was refused: it holds {', '.join(found)}, which only running code could rebuild; store plain "
                "weights, such as torch.save(model.state_dict(), ...)"
            ) from error
        raise ValueError(f"{path} is truncated or no checkpoint") from error
    except (RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"{path} is truncated or no checkpoint: {str(error).splitlines()[0]}") from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f"{path} holds a {type(checkpoint).__name__}, not a dict of weights")
    return checkpoint


def _refused_objects(path: Path, message: str) -> list[str]:
    """Names of what a pickle would call, without calling it; from PyTorch's message if the file can't be parsed."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except (RuntimeError, ValueError, OSError, EOFError, pickle.UnpicklingError):
        return re.findall(r"GLOBAL ([\w.]+)", message)[:1]
