"""Finds and reads the files of a data set, with one rule for hidden files, symbolic links, order and encodings."""

import json
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from .images import IMAGE_SUFFIXES

__all__ = [
    "check_files",
    "drop_unreadable",
    "existing_folder",
    "find_files",
    "is_hidden",
    "read_json",
    "read_lines",
    "read_yaml",
    "relative_name",
    "select_names",
    "subfolders",
]

# What operating systems and network drives leave behind, besides names that begin with a dot.
_SYSTEM_NAMES = {
    *("thumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found"),
}
T = TypeVar("T")


def is_hidden(name: str) -> bool:
    """Whether a file or folder name is not part of a data set: `.ipynb_checkpoints`, `._a.jpg`, `Thumbs.db`."""
    return name.startswith(".") or name.lower() in _SYSTEM_NAMES


def existing_folder(path: str | Path, argument: str) -> Path:
    """The path of a folder.

    Raises:
        FileNotFoundError: If there is none; the message names the argument that gave it.
    """
    path = Path(path)
    if not path.is_dir():
        what = "is a file, not a folder" if path.exists() else "does not exist"
        raise FileNotFoundError(f"no folder {path} ({argument}): it {what}")
    return path


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted by name.

    Raises:
        FileNotFoundError: If a symbolic link is broken.
    """
    entries = sorted((e for e in os.scandir(folder) if not is_hidden(e.name)), key=lambda entry: entry.name)
    for entry in entries:
        _check_link(entry, ())
    return [Path(entry.path) for entry in entries if entry.is_dir()]


def find_files(folder: Path, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> list[Path]:
    """The files below a folder with one of these extensions, ignoring case, sorted by path.

    Symbolic links are followed.

    Raises:
        FileNotFoundError: If a symbolic link is broken.
        ValueError: If symbolic links lead round in a circle.
    """
    return list(_walk(Path(folder), tuple(suffixes), ()))


def _walk(folder: Path, suffixes: tuple[str, ...], above: tuple[str, ...]) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in above:
        raise ValueError(f"{folder} is {real} once more, by a symbolic link that leads back: remove the link")
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if is_hidden(entry.name):
            continue
        _check_link(entry, suffixes)
        if entry.is_dir():
            yield from _walk(Path(entry.path), suffixes, (*above, real))
        elif entry.name.lower().endswith(suffixes):
            yield Path(entry.path)


def _check_link(entry: os.DirEntry, suffixes: tuple[str, ...]) -> None:
    """A broken link may have been a folder if its name has no extension."""
    wanted = not Path(entry.name).suffix or entry.name.lower().endswith(suffixes)
    if wanted and entry.is_symlink() and not os.path.exists(entry.path):
        raise FileNotFoundError(f"{entry.path} is a symbolic link to {os.readlink(entry.path)}, which is missing")


def read_lines(path: str | Path) -> list[str]:
    """The lines of a text file in UTF-8, with or without a byte order mark, whatever the locale.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is in another encoding.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise ValueError(f"{path} is not in UTF-8 (byte {byte:#04x} at {error.start}): save it as UTF-8") from error


def read_json(path: str | Path) -> Any:
    """The content of a JSON file in UTF-8, -16 or -32, with or without a byte order mark.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not valid JSON.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no annotation file {path}")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def read_yaml(path: str | Path) -> Any:
    """The content of a YAML file of plain data: nothing in it can run code.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not valid YAML, in another encoding, or asks for anything but plain data.
    """
    import yaml

    text = "\n".join(read_lines(path))
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid YAML of plain data: {' '.join(str(error).split())}") from error


def relative_name(path: Path, root: Path) -> str:
    """The name of a file in a list: its path below the root, with slashes; the full path if it is elsewhere."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def select_names(items: Iterable[T], names_file: str | Path | None, name: Callable[[T], str], source: str) -> list[T]:
    """The items whose names a text file lists, one per line; all of them without a file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it names something that there is not.
    """
    items = list(items)
    if names_file is None:
        return items
    wanted = {line.strip() for line in read_lines(names_file) if line.strip()}
    chosen = [item for item in items if name(item) in wanted]
    if len(chosen) < len(wanted):
        missing = sorted(wanted - {name(item) for item in chosen})
        raise ValueError(f"{names_file} names {missing[0]!r} and {len(missing) - 1} more that {source} does not have")
    return chosen


def check_files(paths: Sequence[Path], describe: Callable[[int], str]) -> list[Path]:
    """The paths of files as they are on disk, found by listing each folder once.

    Names may be composed otherwise in Unicode (macOS decomposes accents), and folders separated by backslashes.

    Args:
        paths: The files.
        describe: What needs the file of a number, for messages.

    Raises:
        FileNotFoundError: If one is missing, or a broken symbolic link.
    """
    paths = [_with_slashes(path) for path in paths]
    listings = {folder: _listing(folder) for folder in {path.parent for path in paths}}
    found = []
    for number, path in enumerate(paths):
        entries = listings[path.parent]
        entry = entries.get(path.name) or entries.get(unicodedata.normalize("NFC", path.name))
        if entry is None:
            raise FileNotFoundError(f"no file {path} ({describe(number)})")
        _check_link(entry, (path.suffix.lower(),))
        found.append(path.with_name(entry.name))
    return found


def _listing(folder: Path) -> dict[str, os.DirEntry]:
    """The content of a folder, by name and by Unicode-composed name."""
    entries = list(os.scandir(folder)) if folder.is_dir() else []
    return {unicodedata.normalize("NFC", e.name): e for e in entries} | {e.name: e for e in entries}


def _with_slashes(path: Path) -> Path:
    return Path(str(path).replace("\\", "/")) if "\\" in path.name and not path.exists() else path


def drop_unreadable(
    items: Sequence[T], read: Callable[[T], Any], most: float, source: str, name: Callable[[T], str] = str
) -> list[T]:
    """Reads every item once and leaves out those that cannot be read, naming them in the log.

    Args:
        items: What to read.
        read: Raises an OSError or a ValueError if it can't be read.
        most: The largest share of unreadable items, in [0, 1); 0 reads nothing and keeps all.
        source: Where the items come from, for messages.
        name: What to call an item.

    Raises:
        ValueError: If `most` is out of range or more items than that are unreadable.
    """
    if not 0 <= most < 1:
        raise ValueError(f"skip_unreadable must be a share in [0, 1), got {most}")
    if most == 0:
        return list(items)

    def fault(item: T) -> str | None:
        try:
            read(item)
        except (OSError, ValueError) as error:
            return str(error)
        return None

    with ThreadPoolExecutor() as pool:
        faults = list(pool.map(fault, items))
    bad = [f"{name(item)}: {why}" for item, why in zip(items, faults, strict=True) if why]
    if len(bad) > most * len(items):
        raise ValueError(
            f"{source}: {len(bad)} of {len(items)} pictures cannot be read, more than skip_unreadable={most} allows; "
            f"the first is {bad[0]}"
        )
    if bad:
        from mmengine.logging import print_log  # which those who only look for files do without

        listed = "".join(f"\n  {line}" for line in bad)
        print_log(f"{source}: {len(bad)} of {len(items)} pictures skipped, unreadable:{listed}", "current", 30)
    return [item for item, why in zip(items, faults, strict=True) if why is None]
