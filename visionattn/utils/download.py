"""Downloads a file over HTTP: either complete and verified, or one error that says why not.

What arrives goes to `.part-<name>` beside the file, is verified, and takes its name last. A part that an interrupted
download left is continued by a Range request.
"""

import contextlib
import logging
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from .files import replacing
from .files import sha256 as hash_file
from .http import FetchError, Part, PermanentError, Progress, TransientError, request

__all__ = ["FetchError", "Progress", "RetryPolicy", "fetch", "record_hash", "recorded_hash"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RetryPolicy:
    """When to retry and for how long.

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
    retry: RetryPolicy = RetryPolicy(),
) -> Path:
    """Downloads a file from the first available source, unless it exists already.

    Processes that want the same file wait for each other. If `sha256` is not given, the one of the first download is
    recorded in `<path>.sha256`, and later downloads are held to it.

    Args:
        urls: Where it is, in the order to try: `https://`; `http://` only if its hash is given or recorded.
        path: Where it goes.
        size: Its bytes, if known.
        sha256: Its hash, if known.
        progress: Told how many bytes are there, and of how many, if known.
        retry: How long to go on.

    Raises:
        FetchError: If no source has it, or the disk is full.
        ValueError: If the recorded hash is damaged.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path):
            expected = sha256 or recorded_hash(path)
            if path.is_file():
                if size in (None, path.stat().st_size) and expected in (None, hash_file(path)):
                    return path
                _logger.warning("%s is damaged and is downloaded again", path)
                path.unlink()
            faults = _from_first(urls, path, size, expected, progress, retry)
            if faults is None:
                return path
            hint = f" ({path.name}.sha256 was recorded at the first download: delete it to accept another file)"
            recorded = hint if expected and not sha256 else ""
            raise FetchError(f"failed to download {path.name}: {'; '.join(faults)}{recorded}")
    except FetchError:
        raise
    except OSError as error:
        raise FetchError(f"cannot write {path}: {error.strerror or error}") from error


def recorded_hash(path: Path) -> str | None:
    """The recorded hash of a file without a published one, from its first use.

    Raises:
        ValueError: If the record is damaged.
    """
    record = path.with_name(f"{path.name}.sha256")
    if not record.is_file():
        return None
    found = re.match(r"[0-9a-f]{64}\b", record.read_text("utf-8", "replace"))
    if not found:
        raise ValueError(f"{record} is damaged: it does not begin with a sha256; delete it to record the file's anew")
    return found[0]


def record_hash(path: Path, sha256: str) -> None:
    """Records the hash of a file without a published one."""
    with replacing(path.with_name(f"{path.name}.sha256")) as record:
        record.write_text(f"{sha256}  {path.name}\n", "utf-8")
    _logger.warning("%s: its authors state no hash; recorded sha256 %s, checked from now on", path.name, sha256)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Waits while another process downloads the same file."""
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _logger.warning("another process downloads %s: waiting for it", path.name)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _from_first(
    urls: Sequence[str], path: Path, size: int | None, sha256: str | None, progress: Progress, retry: RetryPolicy
) -> list[str] | None:
    """Downloads from the first source that has the file; what is wrong with each if none has."""
    faults = []
    part = Part(path.with_name(f".part-{path.name}"), sha256 is not None)
    for url in urls:
        try:
            found = _from(url, part, size, sha256, progress, retry)
        except PermanentError as fault:
            faults.append(f"{url}: {fault}")
            continue
        if sha256 is None:
            record_hash(path, found)
        os.replace(part.path, path)
        part.remove()
        return None
    return faults


def _from(url: str, part: Part, size: int | None, sha256: str | None, progress: Progress, retry: RetryPolicy) -> str:
    """Completes the partial file from one source; returns its hash."""
    validator = part.validator(url)
    continued = part.size > 0
    _transfer(url, part, size, validator, progress, retry)
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
    return _from(url, part, size, sha256, progress, retry)  # perhaps it was the old part that was wrong


def _transfer(
    url: str, part: Part, size: int | None, validator: str | None, progress: Progress, retry: RetryPolicy
) -> None:
    """Retries until the file is complete."""
    failures, furthest = 0, part.size
    while True:
        try:
            return request(url, part, size, validator, progress, retry.timeout)
        except TransientError as fault:
            failures = 0 if part.size > furthest else failures + 1
            furthest = max(furthest, part.size)
            if failures >= retry.attempts:
                raise PermanentError(f"{fault} (after {failures} attempts)") from fault
            time.sleep(retry.wait * 2 ** max(failures - 1, 0))
            validator = part.validator(url)
