"""Requests a file or the rest of it, and writes it to a partial file beside the destination."""

import contextlib
import errno
import http.client
import ipaddress
import json
import os
import shutil
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from visionattn.version import __version__

__all__ = ["FetchError", "Part", "PermanentError", "Progress", "TransientError", "check_url", "request"]

Progress = Callable[[int, int | None], None]


class FetchError(FileNotFoundError):
    """A file could not be downloaded; no file exists under its name."""


class TransientError(Exception):
    """An error that may disappear on the next attempt."""


class PermanentError(Exception):
    """A permanent error of this source."""


class Part:
    """The downloaded part of a file, and its source.

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
        """The validator that keeps versions of a file apart. Removes parts that can't be resumed."""
        note: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError):
            note = json.loads(self.note.read_bytes())
        validator = note.get("validator") if note.get("url") == url else None
        if validator is None and not self.known:
            self.remove()
        return validator

    def describe(self, url: str, headers: http.client.HTTPMessage) -> None:
        etag = headers.get("ETag", "")
        validator = headers.get("Last-Modified") if not etag or etag.startswith("W/") else etag
        self.note.write_text(json.dumps({"url": url, "validator": validator}), "utf-8")


def request(url: str, part: Part, size: int | None, validator: str | None, progress: Progress, timeout: float) -> None:
    """Requests the missing part of a file.

    Args:
        url: Where.
        part: What is there.
        size: Bytes of the file, if known.
        validator: What tells the server which version of the file the part is of.
        progress: Told how many bytes are there, and of how many, if known.
        timeout: Seconds without a byte after which the connection counts as dead.

    Raises:
        TransientError: If another attempt may succeed.
        PermanentError: If this server can't help.
        FetchError: If the disk is full.
    """
    check_url(url, part.known)
    start = part.size
    if size is not None and start == size:
        return
    headers = {"User-Agent": f"visionattn/{__version__}", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if validator is not None:
            headers["If-Range"] = validator
    try:
        opener = urllib.request.build_opener(_Redirects(part.known))
        with opener.open(urllib.request.Request(url, headers=headers), timeout=timeout) as answer:
            if answer.status != 206:
                start = 0
            length = answer.headers.get("Content-Length")
            if length is not None and not length.strip().isdecimal():
                raise PermanentError(f"sends a Content-Length that is not a number: {length[:40]!r}")
            total = None if length is None else start + int(length)
            _check_answer(answer.headers, part, start, size, total)
            part.describe(url, answer.headers)
            _receive(answer, part, start, size, total, progress)
    except urllib.error.HTTPError as error:
        _explain(error, part)
    except ssl.SSLCertVerificationError as error:
        raise PermanentError(f"its certificate is not valid ({error.verify_message})") from error
    except (TimeoutError, ConnectionError, http.client.HTTPException, urllib.error.URLError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise PermanentError(f"its certificate is not valid ({reason.verify_message})") from error
        if isinstance(reason, TimeoutError):
            raise TransientError(f"no byte within {timeout:g} s") from error
        raise TransientError(str(reason) or type(reason).__name__) from error


def _check_answer(
    headers: http.client.HTTPMessage, part: Part, start: int, size: int | None, total: int | None
) -> None:
    if headers.get_content_type() == "text/html":
        raise PermanentError("returned HTML instead of the file")
    if start and not headers.get("Content-Range", "").startswith(f"bytes {start}-"):
        part.remove()
        raise TransientError("resumed at another byte than was requested")
    if None not in (size, total) and size != total:
        raise PermanentError(f"has {total} bytes, not {size}")
    if total is not None and total - start > (free := shutil.disk_usage(part.path.parent).free):
        raise _no_room(part, f"{total - start} bytes are to come, {free} are free")


def _receive(
    answer: http.client.HTTPResponse,
    part: Part,
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
                raise PermanentError(f"sends more than {limit} bytes")
            try:
                while block:
                    block = block[file.write(block) :]
            except OSError as error:
                raise _no_room(part, os.strerror(error.errno or errno.ENOSPC)) from error
    if total is not None and done < total:
        raise TransientError(f"the connection ended at {done} of {total} bytes")


def _no_room(part: Part, why: str) -> FetchError:
    kept = f"; what was received is kept in {part.path.name}" if part.size else ""
    return FetchError(f"no space left in {part.path.parent}: {why}{kept}")


def _explain(error: urllib.error.HTTPError, part: Part) -> None:
    """Raises an error for a bad response; returns if the part is complete already."""
    error.close()
    if error.code == 416 and part.size:
        if error.headers.get("Content-Range", "") == f"bytes */{part.size}":
            return
        part.remove()
        raise TransientError("the part is longer than the file") from error
    text = f"{error.code} {error.reason}"
    if error.code in (408, 425, 429) or error.code >= 500:
        raise TransientError(text) from error
    raise PermanentError(text) from error


def check_url(url: str, verified: bool) -> None:
    """Refuses URLs other than https, and http for files without a hash.

    Args:
        url: The source.
        verified: Whether the file's hash is known.

    Raises:
        PermanentError: If it is refused.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise PermanentError(f"only https:// and http:// are downloaded from, not {parts.scheme or 'a path'}")
    if parts.scheme == "http" and not verified and not _is_this_machine(parts.hostname):
        raise PermanentError("plain http is refused where no sha256 is known: anybody on the way could change the file")


def _is_this_machine(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, 308 too (which Python 3.10 leaves out), to what `check_url` allows and never out of https."""

    def __init__(self, verified: bool) -> None:
        self.verified = verified

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise PermanentError(f"redirects to {newurl}, which is not encrypted")
        check_url(newurl, self.verified)
        return super().redirect_request(req, fp, 307 if code == 308 else code, msg, headers, newurl)

    http_error_308 = urllib.request.HTTPRedirectHandler.http_error_302
