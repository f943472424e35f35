"""Downloads images from URLs, with limits on size and time."""

import http.client
import time
import urllib.error
import urllib.request

from visionattn.version import __version__

__all__ = ["is_url", "read_url"]

_MOST_BYTES = 64 << 20
_MOST_SECONDS = 60.0  # in all
_SILENCE = 15.0  # seconds without a byte


def is_url(text: str) -> bool:
    """Whether a text is a URL that `read_url` accepts."""
    return text.lower().startswith(("http://", "https://"))


def read_url(url: str, most_bytes: int = _MOST_BYTES, most_seconds: float = _MOST_SECONDS) -> bytes:
    """The content at a URL.

    Args:
        url: `http://` or `https://`; redirects are followed to such addresses only.
        most_bytes: The largest content that is accepted.
        most_seconds: How long it may take.

    Raises:
        ValueError: If it can't be read, is larger, takes longer, or is a web page.
    """
    deadline = time.monotonic() + most_seconds
    request = urllib.request.Request(url, headers={"User-Agent": f"visionattn/{__version__}"})
    content = bytearray()
    try:
        with _opener().open(request, timeout=min(_SILENCE, most_seconds)) as answer:
            if answer.headers.get_content_type() == "text/html":
                raise ValueError("it is a web page, not a picture")
            while block := answer.read1(1 << 16):
                content += block
                if len(content) > most_bytes:
                    raise ValueError(f"it has more than {most_bytes} bytes")
                if time.monotonic() > deadline:
                    raise ValueError(f"it takes longer than {most_seconds:g} s")
            expected = answer.headers.get("Content-Length", "")
            if expected.isdecimal() and len(content) < int(expected):
                raise ValueError(f"the connection ended at {len(content)} of {expected} bytes")
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        code = f"{error.code} " if isinstance(error, urllib.error.HTTPError) else ""
        raise ValueError(f"cannot read {url}: {code}{str(reason) or type(reason).__name__}") from error
    return bytes(content)


def _opener() -> urllib.request.OpenerDirector:
    """An opener for http and https only; urllib's default also handles ftp, file and data URLs."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener
