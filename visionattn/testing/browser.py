"""A headless Chromium, driven through its DevTools protocol over two pipes: for tests of pages, and their pictures."""

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["BROWSERS", "Tab", "find_browser", "open_page"]

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_SECONDS = 60.0  # for one answer; a browser's start on a busy machine takes many of them
_KEYS = {"ArrowUp": 38, "ArrowDown": 40, "ArrowLeft": 37, "ArrowRight": 39, "PageUp": 33, "PageDown": 34}


def find_browser() -> str | None:
    """The path of Chromium or Chrome, if one is installed."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


@contextlib.contextmanager
def open_page(path: str | Path, *, size: tuple[int, int] = (1200, 900), fragment: str = "") -> Iterator["Tab"]:
    """Opens a file in a browser of its own, which ends with the block.

    Args:
        path: An HTML file.
        size: Width and height of the window in pixels.
        fragment: What stands behind `#` in the address.

    Raises:
        FileNotFoundError: If no browser is installed.
        TimeoutError: If it does not answer.
    """
    browser = find_browser()
    if browser is None:
        raise FileNotFoundError(f"none of {', '.join(BROWSERS)} is installed")
    to_browser, our_end = os.pipe()
    our_ear, from_browser = os.pipe()
    options = ["--headless=new", "--remote-debugging-pipe", "--disable-gpu", "--no-first-run", "--mute-audio"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:  # Chromium's sandbox refuses root
        options.append("--no-sandbox")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        # It reads commands from the file descriptor 3 and answers on 4.
        script = f'exec "$0" "$@" 3<&{to_browser} 4>&{from_browser}'
        process = subprocess.Popen(
            ["bash", "-c", script, browser, *options, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        try:
            tab = Tab(our_end, our_ear, size)
            tab.go(f"{Path(path).resolve().as_uri()}{'#' if fragment else ''}{fragment}")
            yield tab
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            process.wait()
            os.close(our_end)
            os.close(our_ear)


class Tab:
    """One page in a browser.

    Args:
        writing: Where commands go.
        reading: Where answers and events come from.
        size: Width and height of the window.

    Attributes:
        addresses: Every address that the page asked for, but for data within it.
        errors: What its scripts failed at.
    """

    def __init__(self, writing: int, reading: int, size: tuple[int, int]) -> None:
        self._writing, self._reading, self._rest, self._count, self._session = writing, reading, b"", 0, ""
        self.addresses: list[str] = []
        self.errors: list[str] = []
        os.set_blocking(reading, False)
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for part in ("Page", "Runtime", "Network"):
            self.call(f"{part}.enable")
        width, height = size
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol, and its answer.

        Raises:
            RuntimeError: If the browser refuses it.
        """
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._writing, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + _SECONDS
        while (answer := self._next(deadline)).get("id") != self._count:
            self._note(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        found: dict[str, Any] = answer["result"]
        return found

    def go(self, address: str) -> None:
        """Opens an address and waits until its scripts have run."""
        self.call("Page.navigate", url=address)
        deadline = time.monotonic() + _SECONDS
        while self.evaluate("document.readyState") != "complete" and time.monotonic() < deadline:
            time.sleep(0.05)

    def wait(self, expression: str) -> None:
        """Waits until an expression of JavaScript is true.

        Raises:
            TimeoutError: If it does not become so.
        """
        deadline = time.monotonic() + _SECONDS
        while not self.evaluate(f"Boolean({expression})"):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{expression} stays false; errors of the page: {self.errors}")
            time.sleep(0.05)

    def evaluate(self, expression: str) -> Any:
        """The value of an expression of JavaScript.

        Raises:
            RuntimeError: If it throws.
        """
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(str(result["exceptionDetails"].get("exception", result["exceptionDetails"])))
        return result["result"].get("value")

    def place(self, selector: str, across: float = 0.5, down: float = 0.5) -> tuple[float, float]:
        """A point of an element in pixels of the window, after scrolling to it."""
        script = (
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); "
            "e.scrollIntoView({block: 'nearest'}); const r = e.getBoundingClientRect(); "
            f"return [r.left + {across} * r.width, r.top + {down} * r.height]; }})()"
        )
        x, y = self.evaluate(script)
        return x, y

    def move(self, x: float, y: float) -> None:
        """Moves the mouse."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, x: float, y: float) -> None:
        """Moves the mouse and clicks, as a hand does: the browser itself makes the events."""
        self.move(x, y)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str) -> None:
        """Presses a key and lets it go."""
        code = _KEYS.get(key) or ord(key)
        text = {} if key in _KEYS else {"text": key}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def screenshot(self) -> bytes:
        """The window as PNG."""
        return b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def _next(self, deadline: float) -> dict[str, Any]:
        """The next message."""
        while b"\0" not in self._rest:
            try:
                part = os.read(self._reading, 1 << 20)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"the browser has not answered for {_SECONDS:.0f} s") from None
                time.sleep(0.01)
                continue
            if not part:
                raise RuntimeError("the browser has ended")
            self._rest += part
        message, self._rest = self._rest.split(b"\0", 1)
        found: dict[str, Any] = json.loads(message)
        return found

    def _note(self, event: dict[str, Any]) -> None:
        if event.get("method") == "Network.requestWillBeSent":
            address = event["params"]["request"]["url"]
            self.addresses += [] if address.startswith("data:") else [address]
        elif event.get("method") == "Runtime.exceptionThrown":
            details = event["params"]["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
