"""Videos in and out, through OpenCV."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import cv2
import numpy as np

__all__ = ["VIDEO_SUFFIXES", "VideoWriter", "frame_count", "frame_rate", "read_frames"]

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")


def read_frames(path: str | Path) -> Iterator[tuple[float, Callable[[], np.ndarray]]]:
    """The frames of a video: the time of each in seconds, and a function that reads it as `(H, W, 3)` uint8 RGB.

    A video that can't be opened gives one frame that raises a ValueError when it is read; one that ends before the
    length that it states gives such a frame at its end.
    """
    capture = cv2.VideoCapture(str(path))
    rate, number = _rate(capture), 0
    try:
        while capture.isOpened():
            read, frame = capture.read()
            if not read:
                break
            yield number / rate, partial(cv2.cvtColor, frame, cv2.COLOR_BGR2RGB)
            number += 1
        stated = capture.get(cv2.CAP_PROP_FRAME_COUNT) if number else 1
        if number < 0.9 * stated:  # the length in a header may be an estimate
            yield number / rate, partial(_fail, path, number, stated)
    finally:
        capture.release()


def frame_rate(path: str | Path) -> float:
    """Frames per second; 25 if the file does not state it."""
    capture = cv2.VideoCapture(str(path))
    try:
        return _rate(capture)
    finally:
        capture.release()


def frame_count(path: str | Path) -> int:
    """The number of frames that a video states, perhaps an estimate; 0 if it can't be opened."""
    capture = cv2.VideoCapture(str(path))
    try:
        return max(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0) if capture.isOpened() else 0
    finally:
        capture.release()


class VideoWriter:
    """Writes frames of one size as a video: `.mp4` if OpenCV supports it, else `.avi`.

    Args:
        stem: Path without the ending.
        rate: Frames a second.
    """

    def __init__(self, stem: Path, rate: float) -> None:
        self.stem = stem
        self.rate = rate
        self.path: Path | None = None
        self.count = 0

    def add(self, frame: np.ndarray) -> None:
        """Appends a frame, `(H, W, 3)` uint8 RGB.

        Raises:
            OSError: If no video can be written there.
        """
        if self.path is None:
            self._open(frame.shape[1::-1])
        self.writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        self.count += 1

    def close(self) -> None:
        """Finishes the file.

        Raises:
            OSError: If frames are missing in it, as on a full disk, which OpenCV does not report.
        """
        if self.path is None:
            return
        self.writer.release()
        if (written := frame_count(self.path)) < self.count:
            raise OSError(f"{self.path} holds {written} of {self.count} frames: is the disk full?")

    def _open(self, size: tuple[int, int]) -> None:
        for suffix, code in ((".mp4", "mp4v"), (".avi", "MJPG")):
            self.path = self.stem.with_name(self.stem.name + suffix)
            self.writer = cv2.VideoWriter(str(self.path), cv2.VideoWriter.fourcc(*code), self.rate, size)
            if self.writer.isOpened():
                return
        raise OSError(f"cannot write a video at {self.path}")


def _rate(capture: cv2.VideoCapture) -> float:
    rate = capture.get(cv2.CAP_PROP_FPS) if capture.isOpened() else 0.0
    return rate if 0 < rate < 1000 else 25.0


def _fail(path: str | Path, number: int, stated: float) -> np.ndarray:
    if number == 0:
        raise ValueError(f"cannot read video {path}: it is missing, damaged or in no format that OpenCV knows")
    raise ValueError(f"video {path} ends after {number} of {stated:.0f} frames")
