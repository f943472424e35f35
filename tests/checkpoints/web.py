"""A web server on this machine that holds what tests put there and misbehaves as they say."""

import hashlib
import http.server
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


class Web:
    """Files by path, each with what may go wrong, and the list of what was asked for.

    Attributes:
        files: Path -> content.
        asked: Path and range of every request.
        cuts: Bytes after which the next answers end; a stalled one waits until the server is closed.
        stall: Whether an answer that is cut stays open.
        other: Path -> what answers in place of the file.
        chunked: Whether to keep the length of files to itself.
        pause: Seconds before each block of 1 kB.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.cuts: list[int] = []
        self.stall = False
        self.other: dict[str, Callable] = {}
        self.chunked = False
        self.pause = 0.0
        self.url = ""
        self.closed = threading.Event()


@contextmanager
def serving() -> Iterator[Web]:
    web = Web()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            web.asked.append((self.path, self.headers.get("Range")))
            self.close_connection = True
            if self.path in web.other:
                web.other[self.path](self)
            elif self.path not in web.files:
                plain(self, 404)
            else:
                self.answer(web.files[self.path])

        def answer(self, content):
            etag = f'"{hashlib.md5(content).hexdigest()}"'
            start = 0
            if (wanted := self.headers.get("Range")) and self.headers.get("If-Range", etag) == etag:
                start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start and start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206 if start else 200)
            self.send_header("ETag", etag)
            self.send_header("Content-Type", "application/octet-stream")
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            if web.chunked:
                self.send_header("Transfer-Encoding", "chunked")
            else:
                self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            end = start + web.cuts.pop(0) if web.cuts else len(content)
            for at in range(start, min(end, len(content)), 1024):
                time.sleep(web.pause)
                block = content[at : min(at + 1024, end)]
                self.wfile.write(b"%x\r\n%s\r\n" % (len(block), block) if web.chunked else block)
            if end < len(content):
                if web.stall:
                    self.wfile.flush()
                    web.closed.wait()
            elif web.chunked:
                self.wfile.write(b"0\r\n\r\n")

        def log_message(self, *args):
            pass

        def handle(self):
            with suppress(ConnectionError):  # who asked may have gone
                super().handle()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    web.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield web
    finally:
        web.closed.set()
        server.shutdown()
        server.server_close()


def plain(handler, status, **headers):
    """An answer without content."""
    handler.send_response(status)
    for name, value in {"Content-Length": "0", **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
