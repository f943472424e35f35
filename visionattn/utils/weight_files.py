"""Locates the file of a checkpoint, and downloads it if missing.

It is looked for among the packaged files, in the folder that the environment variable VISIONATTN_CHECKPOINTS names, and
in torch.hub's cache; then its sources are asked. Repositories of the Hugging Face hub are cached as that library does.

Where the authors state no hash, the one of the first file that was used is recorded in the cache
(`<file>.sha256`), and every later file of that checkpoint is held to it.
"""

import logging
import re
from pathlib import Path
from typing import Any

import torch

from .download import FetchError, Progress, RetryPolicy, fetch, record_hash, recorded_hash
from .files import sha256, verify_file
from .resources import USER_FOLDER, checkpoint_dir, user_folder

__all__ = ["cache_dir", "find", "instruction", "obtain", "sources"]

_logger = logging.getLogger(__name__)

Entry = dict[str, Any]


def cache_dir() -> Path:
    """The download folder, shared with torch.hub and timm."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def sources(entry: Entry, kind: str, field: str = "url") -> list[str]:
    """The sources of one kind in a manifest entry, in order."""
    return [source[field] for source in entry["sources"] if source["kind"] == kind]


def find(entry: Entry) -> Path | None:
    """The file of an entry, if it is on this machine (not counting the hub's cache).

    Raises:
        ValueError: If VISIONATTN_CHECKPOINTS names no folder, the file in it is not the one that the manifest or the
            recorded hash says, or the entry's file is not a plain name.
    """
    name = _file_name(entry)
    if {"kind": "packaged"} in entry["sources"]:
        return checkpoint_dir() / name  # its name holds its hash, checked by whoever reads it
    folder = user_folder()
    if folder is not None and (folder / name).is_file():
        if fault := _fault(folder / name, entry, cache_dir() / name):
            raise ValueError(f"{folder / name} (found by {USER_FOLDER}) {fault}")
        return folder / name
    path = cache_dir() / name
    if not path.is_file():
        return None
    if fault := _fault(path, entry, path):
        _logger.warning("%s %s: it is ignored", path, fault)
        return None
    return path


def obtain(
    entry: Entry,
    progress: Progress = lambda done, total: None,
    retry: RetryPolicy = RetryPolicy(),  # noqa: B008 (it is immutable)
) -> Path:
    """The file of an entry, from this machine or the first available source.

    Args:
        entry: Of the manifest.
        progress: Told how many bytes have come, and of how many, if known.
        retry: How long to go on.

    Raises:
        FetchError: If no source has it, or a person must download it; the message says how.
        ValueError: As `find`, or if the hub's file is not the one whose hash was recorded.
    """
    if found := find(entry):
        if {"kind": "packaged"} in entry["sources"]:
            verify_file(found)
        return found
    from huggingface_hub.errors import EntryNotFoundError

    faults = []
    for repository in sources(entry, "hub", "id"):
        try:
            path = _from_hub(repository)
        except (OSError, ValueError, EntryNotFoundError) as error:
            faults.append(f"{repository} on the hub: {str(error).splitlines()[0]}")
            continue
        # The hub's file is another than the authors'.
        if fault := _fault(path, {"bytes": None, "sha256": None}, _hub_record(repository, path)):
            raise ValueError(f"{path} (of {repository} on the hub) {fault}")
        return path
    if urls := sources(entry, "url"):
        known = {"size": entry["bytes"], "sha256": entry["sha256"]}
        try:
            return fetch(urls, cache_dir() / _file_name(entry), **known, progress=progress, retry=retry)
        except FetchError as error:
            faults.append(str(error))
    raise FetchError(". ".join([*faults, instruction(entry)]))


def instruction(entry: Entry) -> str:
    """Instructions for obtaining the file of an entry by hand."""
    pages = [*sources(entry, "page"), *sources(entry, "url")]
    pages += [f"https://huggingface.co/{repository}" for repository in sources(entry, "hub", "id")]
    return (
        f"To get {entry['model']}.{entry['tag']} by hand, open {' or '.join(pages)} in a browser, save the file as "
        f"{entry['file']} and set the environment variable {USER_FOLDER} to its folder"
    )


def _file_name(entry: Entry) -> str:
    """The file name of an entry; paths are refused, since they could lead outside the folder."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", entry["file"]):
        raise ValueError(f"a checkpoint's file must be a plain name, got {entry['file']!r}")
    return entry["file"]


def _fault(path: Path, entry: Entry, record: Path) -> str | None:
    """The fault of a file: its size or hash; with `record`, an unknown hash is recorded."""
    if entry["bytes"] is not None and path.stat().st_size != entry["bytes"]:
        return f"has {path.stat().st_size} bytes, the manifest says {entry['bytes']}"
    found, expected = sha256(path), entry["sha256"] or recorded_hash(record)
    if expected is None:
        record_hash(record, found)
    elif found != expected:
        where = "" if entry["sha256"] else f" ({record}.sha256, recorded at first use; delete it to accept this file)"
        return f"is damaged or was changed: its sha256 is {found[:16]}..., not {expected[:16]}...{where}"
    return None


def _hub_record(repository: str, path: Path) -> Path:
    return cache_dir() / f"{repository.replace('/', '--')}--{path.name}"


def _from_hub(repository: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repository, "model.safetensors"))
    except LocalEntryNotFoundError:
        raise
    except EntryNotFoundError:
        return Path(hf_hub_download(repository, "pytorch_model.bin"))
