"""Where the file of a checkpoint is, and how it comes here if it is not.

It is looked for among the packaged files, in the folder that the environment variable VISIONATTN_CHECKPOINTS names, and
in torch.hub's cache; then its sources are asked. Repositories of the Hugging Face hub are cached as that library does.
"""

import logging
import os
from pathlib import Path
from typing import Any

import torch

from .download import FetchError, Progress, RetryPolicy, fetch, recorded_hash
from .files import sha256, verify_file
from .resources import checkpoint_dir

__all__ = ["OFFLINE", "cache_dir", "find", "instruction", "obtain", "sources"]

_logger = logging.getLogger(__name__)

OFFLINE = "VISIONATTN_CHECKPOINTS"
Entry = dict[str, Any]


def cache_dir() -> Path:
    """Where downloads go: the folder that torch.hub and timm share."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def sources(entry: Entry, kind: str, field: str = "url") -> list[str]:
    """What an entry of the manifest says of one kind of its sources, in order."""
    return [source[field] for source in entry["sources"] if source["kind"] == kind]


def find(entry: Entry) -> Path | None:
    """The file of an entry, if it is on this machine; the hub's cache is not looked into.

    Raises:
        ValueError: If there is no such offline folder, or the file in it is another than the manifest says.
    """
    if {"kind": "packaged"} in entry["sources"]:
        return checkpoint_dir() / entry["file"]  # its name holds its hash, checked by whoever reads it
    if folder := os.environ.get(OFFLINE):
        if not Path(folder).expanduser().is_dir():
            raise ValueError(f"{OFFLINE} names {folder}, which is no folder")
        path = Path(folder).expanduser() / entry["file"]
        if path.is_file():
            if fault := _fault(path, entry):
                raise ValueError(f"{path} (found by {OFFLINE}) {fault}")
            return path
    path = cache_dir() / entry["file"]
    if not path.is_file():
        return None
    if fault := _fault(path, entry):
        _logger.warning("%s %s: it is left aside", path, fault)
        return None
    return path


def obtain(
    entry: Entry,
    progress: Progress = lambda done, total: None,
    patience: RetryPolicy = RetryPolicy(),  # noqa: B008 (it is immutable)
) -> Path:
    """The file of an entry, from this machine or else from the first source that has it.

    Args:
        entry: Of the manifest.
        progress: Told how many bytes have come, and of how many, if known.
        patience: How long to go on.

    Raises:
        FetchError: If no source has it, or a person must fetch it; the message says how.
        ValueError: If the file in the offline folder is another than the manifest says.
    """
    if found := find(entry):
        if {"kind": "packaged"} in entry["sources"]:
            verify_file(found)
        return found
    from huggingface_hub.errors import EntryNotFoundError

    faults = []
    for repository in sources(entry, "hub", "id"):
        try:
            return _from_hub(repository)
        except (OSError, ValueError, EntryNotFoundError) as error:
            faults.append(f"{repository} on the hub: {str(error).splitlines()[0]}")
    if urls := sources(entry, "url"):
        try:
            path = fetch(
                urls,
                cache_dir() / entry["file"],
                size=entry["bytes"],
                sha256=entry["sha256"],
                progress=progress,
                patience=patience,
            )
        except FetchError as error:
            faults.append(str(error))
        else:
            if entry["sha256"] is None:
                _logger.warning("%s: its authors state no hash; found sha256 %s", path.name, recorded_hash(path))
            return path
    raise FetchError(". ".join([*faults, instruction(entry)]))


def instruction(entry: Entry) -> str:
    """How a person gets the file of an entry."""
    pages = [*sources(entry, "page"), *sources(entry, "url")]
    pages += [f"https://huggingface.co/{repository}" for repository in sources(entry, "hub", "id")]
    return (
        f"To get {entry['model']}.{entry['tag']} by hand, open {' or '.join(pages)} in a browser, save the file as "
        f"{entry['file']} and set the environment variable {OFFLINE} to its folder"
    )


def _fault(path: Path, entry: Entry) -> str | None:
    """What is wrong with a file, as far as its size and hash are known."""
    if entry["bytes"] is not None and path.stat().st_size != entry["bytes"]:
        return f"has {path.stat().st_size} bytes, the manifest says {entry['bytes']}"
    expected = entry["sha256"] or recorded_hash(path)
    if expected is None:
        _logger.info("%s is not verified: its authors state no hash", path)
    elif (found := sha256(path)) != expected:
        return f"is damaged: its sha256 is {found[:16]}..., not {expected[:16]}..."
    return None


def _from_hub(repository: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repository, "model.safetensors"))
    except LocalEntryNotFoundError:
        raise
    except EntryNotFoundError:
        return Path(hf_hub_download(repository, "pytorch_model.bin"))
