"""Getting a file over HTTP: in the end it lies there whole and verified, or one error says why not.

What arrives goes to `.part-<name>` beside the file, is verified, and takes its name last. A part that an interrupted
download left is continued by a Range request.
"""

import contextlib
import errno
import http.client
import json
import logging
import os
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ._files import replacing
from ._files import sha256 as hash_file
from .version import __version__

__all__ = ["FetchError", "Patience", "fetch", "recorded_hash"]

_logger = logging.getLogger(__name__)

Progress = Callable[[int, int | None], None]


class FetchError(FileNotFoundError):
    """A file could not be had; nothing lies under its name."""


class _Passing(Exception):
    """A fault that may be gone on the next attempt."""


class _Lasting(Exception):
    """A fault that this source keeps."""


@dataclass(frozen=True)
class Patience:
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
    patience: Patience = Patience(),
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


class _Part:
    """What has arrived of a file, and from where.

    Args:
        path: Where it lies.
        known: Whether the whole will be checked by its hash: then parts of different sources may be put together.
    """

    def __init__(self, path: Path, known: bool) -> None:
        self.path = path
        self.note = path.with_name(f"{path.name}.json")
        self.known = known

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    def validator(self, url: str) -> str | None:
        """What the server shall compare, so that no two versions of a file get mixed. Removes what can't go on."""
        note: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError):
            note = json.loads(self.note.read_text())
        validator = note.get("validator") if note.get("url") == url else None
        if validator is None and not self.known:
            self.remove()
        return validator

    def describe(self, url: str, headers: http.client.HTTPMessage) -> None:
        etag = headers.get("ETag", "")
        validator = headers.get("Last-Modified") if not etag or etag.startswith("W/") else etag
        self.note.write_text(json.dumps({"url": url, "validator": validator}))


def _from_first(
    urls: Sequence[str], path: Path, size: int | None, sha256: str | None, progress: Progress, patience: Patience
) -> Path:
    faults = []
    part = _Part(path.with_name(f".part-{path.name}"), sha256 is not None)
    for url in urls:
        try:
            found = _from(url, part, size, sha256, progress, patience)
        except _Lasting as fault:
            faults.append(f"{url}: {fault}")
            continue
        if sha256 is None:
            with replacing(path.with_name(f"{path.name}.sha256")) as record:
                record.write_text(f"{found}  {path.name}\n")
        os.replace(part.path, path)
        part.remove()
        return path
    raise FetchError(f"{path.name} could not be fetched: {'; '.join(faults)}")


def _from(url: str, part: _Part, size: int | None, sha256: str | None, progress: Progress, patience: Patience) -> str:
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
        raise _Lasting(wrong)
    return _from(url, part, size, sha256, progress, patience)  # perhaps it was the old part that was wrong


def _transfer(
    url: str, part: _Part, size: int | None, validator: str | None, progress: Progress, patience: Patience
) -> None:
    """Attempts until the file is whole."""
    failures, furthest = 0, part.size
    while True:
        try:
            return _attempt(url, part, size, validator, progress, patience.timeout)
        except _Passing as fault:
            failures = 0 if part.size > furthest else failures + 1
            furthest = max(furthest, part.size)
            if failures >= patience.attempts:
                raise _Lasting(f"{fault} (after {failures} attempts)") from fault
            time.sleep(patience.wait * 2 ** max(failures - 1, 0))
            validator = part.validator(url)


def _attempt(
    url: str, part: _Part, size: int | None, validator: str | None, progress: Progress, timeout: float
) -> None:
    start = part.size
    if size is not None and start == size:
        return
    headers = {"User-Agent": f"visionattn/{__version__}", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if validator is not None:
            headers["If-Range"] = validator
    try:
        with _OPENER.open(urllib.request.Request(url, headers=headers), timeout=timeout) as answer:
            if answer.status != 206:
                start = 0
            length = answer.headers.get("Content-Length")
            total = None if length is None else start + int(length)
            _check_answer(answer.headers, part, start, size, total)
            part.describe(url, answer.headers)
            _receive(answer, part, start, size, total, progress)
    except urllib.error.HTTPError as error:
        _explain(error, part)
    except ssl.SSLCertVerificationError as error:
        raise _Lasting(f"its certificate is not valid ({error.verify_message})") from error
    except (TimeoutError, ConnectionError, http.client.HTTPException, urllib.error.URLError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise _Lasting(f"its certificate is not valid ({reason.verify_message})") from error
        if isinstance(reason, TimeoutError):
            raise _Passing(f"no byte within {timeout:g} s") from error
        raise _Passing(str(reason) or type(reason).__name__) from error


def _check_answer(
    headers: http.client.HTTPMessage, part: _Part, start: int, size: int | None, total: int | None
) -> None:
    if headers.get_content_type() == "text/html":
        raise _Lasting("answers with a web page in place of the file")
    if start and not headers.get("Content-Range", "").startswith(f"bytes {start}-"):
        part.remove()
        raise _Passing("continues at another place than was asked for")
    if None not in (size, total) and size != total:
        raise _Lasting(f"offers {total} bytes, not {size}")
    if total is not None and total - start > (free := shutil.disk_usage(part.path.parent).free):
        raise _no_room(part, f"{total - start} bytes are to come, {free} are free")


def _receive(
    answer: http.client.HTTPResponse,
    part: _Part,
    start: int,
    size: int | None,
    total: int | None,
    progress: Progress,
) -> None:
    limit = size if total is None else total
    # Unbuffered: a process killed at any moment leaves a part that says how far it came.
    with part.path.open("r+b" if start else "wb", buffering=0) as file:
        done = file.seek(start)
        while True:
            progress(done, limit)
            block = memoryview(answer.read1(1 << 18))
            if not block:
                break
            done += len(block)
            if limit is not None and done > limit:
                raise _Lasting(f"sends more than {limit} bytes")
            try:
                while block:
                    block = block[file.write(block) :]
            except OSError as error:
                raise _no_room(part, os.strerror(error.errno or errno.ENOSPC)) from error
    if total is not None and done < total:
        raise _Passing(f"the connection ended at {done} of {total} bytes")


def _no_room(part: _Part, why: str) -> FetchError:
    kept = f"; what has arrived is kept in {part.path.name}" if part.size else ""
    return FetchError(f"no room in {part.path.parent}: {why}{kept}")


def _explain(error: urllib.error.HTTPError, part: _Part) -> None:
    """Returns if the answer means that the part is whole already."""
    error.close()
    if error.code == 416 and part.size:
        if error.headers.get("Content-Range", "") == f"bytes */{part.size}":
            return
        part.remove()
        raise _Passing("the part is longer than the file") from error
    text = f"{error.code} {error.reason}"
    if error.code in (408, 425, 429) or error.code >= 500:
        raise _Passing(text) from error
    raise _Lasting(text) from error


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, 308 too (which Python 3.10 leaves out), but never out of an encrypted connection."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise _Lasting(f"redirects to {newurl}, which is not encrypted")
        return super().redirect_request(req, fp, 307 if code == 308 else code, msg, headers, newurl)

    http_error_308 = urllib.request.HTTPRedirectHandler.http_error_302


_OPENER = urllib.request.build_opener(_Redirects)
