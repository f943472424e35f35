"""Getting a file over HTTP: in the end it lies there whole and verified, or one error says why not.

What arrives goes to `.part-<name>` beside the file, is verified, and takes its name last. A part that an interrupted
download left is continued by a Range request.
"""

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from .files import replacing
from .files import sha256 as hash_file
from .http import FetchError, Part, PermanentError, Progress, TransientError, request

__all__ = ["FetchError", "Progress", "RetryPolicy", "fetch", "recorded_hash"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RetryPolicy:
    """How long to go on.

    Args:
        timeout: Seconds without a byte after which a connection counts as dead.
        attempts: How many may fail in a row at one source without the file having grown.
        wait: Seconds before the second attempt; doubled before each further one.
    """

    timeout: float = 30.0
    attempts: int = 5
    wait: float = 1.0


def fetch(
    urls: Sequence[str],
    path: str | Path,
    *,
    size: int | None = None,
    sha256: str | None = None,
    progress: Progress = lambda done, total: None,
    patience: RetryPolicy = RetryPolicy(),
) -> Path:
    """Fetches a file from the first of its sources that has it, unless it is there already.

    Processes that want the same file wait for each other. If `sha256` is not known, the one that was found is written
    to `<path>.sha256`.

    Args:
        urls: Where it is, in the order to try.
        path: Where it goes.
        size: Its bytes, if known.
        sha256: Its hash, if known.
        progress: Told how many bytes are there, and of how many, if known.
        patience: How long to go on.

    Raises:
        FetchError: If no source has it, or the disk is full.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path):
            if path.is_file():
                expected = sha256 or recorded_hash(path)
                if size in (None, path.stat().st_size) and expected in (None, hash_file(path)):
                    return path
                _logger.warning("%s is damaged and is fetched again", path)
                path.unlink()
            return _from_first(urls, path, size, sha256, progress, patience)
    except FetchError:
        raise
    except OSError as error:
        raise FetchError(f"{path} could not be written: {error.strerror or error}") from error


def recorded_hash(path: Path) -> str | None:
    """What `fetch` wrote down of a file whose hash nobody has published."""
    record = path.with_name(f"{path.name}.sha256")
    return record.read_text().split()[0] if record.is_file() else None


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """While another process fetches the same file, waits."""
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _logger.warning("another process fetches %s: waiting for it", path.name)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _from_first(
    urls: Sequence[str], path: Path, size: int | None, sha256: str | None, progress: Progress, patience: RetryPolicy
) -> Path:
    faults = []
    part = Part(path.with_name(f".part-{path.name}"), sha256 is not None)
    for url in urls:
        try:
            found = _from(url, part, size, sha256, progress, patience)
        except PermanentError as fault:
            faults.append(f"{url}: {fault}")
            continue
        if sha256 is None:
            with replacing(path.with_name(f"{path.name}.sha256")) as record:
                record.write_text(f"{found}  {path.name}\n")
        os.replace(part.path, path)
        part.remove()
        return path
    raise FetchError(f"{path.name} could not be fetched: {'; '.join(faults)}")


def _from(url: str, part: Part, size: int | None, sha256: str | None, progress: Progress, patience: RetryPolicy) -> str:
    """The whole file in the part, from one source; returns its hash."""
    validator = part.validator(url)
    continued = part.size > 0
    _transfer(url, part, size, validator, progress, patience)
    found = hash_file(part.path)
    wrong = None
    if size is not None and part.size != size:
        wrong = f"has {part.size} bytes, not {size}"
    elif sha256 is not None and found != sha256:
        wrong = f"is damaged: its sha256 is {found[:16]}..., not {sha256[:16]}..."
    if wrong is None:
        return found
    part.remove()
    if not continued:
        raise PermanentError(wrong)
    return _from(url, part, size, sha256, progress, patience)  # perhaps it was the old part that was wrong


def _transfer(
    url: str, part: Part, size: int | None, validator: str | None, progress: Progress, patience: RetryPolicy
) -> None:
    """Attempts until the file is whole."""
    failures, furthest = 0, part.size
    while True:
        try:
            return request(url, part, size, validator, progress, patience.timeout)
        except TransientError as fault:
            failures = 0 if part.size > furthest else failures + 1
            furthest = max(furthest, part.size)
            if failures >= patience.attempts:
                raise PermanentError(f"{fault} (after {failures} attempts)") from fault
            time.sleep(patience.wait * 2 ** max(failures - 1, 0))
            validator = part.validator(url)
