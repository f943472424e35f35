"""A folder of results: each image's result is written at once, and the tables at the end, however the run ends."""

import csv
import io
import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any

from PIL import Image

from visionattn.utils.files import replacing
from visionattn.visualization.predictions import class_colours

from .network import Network
from .pictures import OUTPUT_MARKER, printable
from .predictor import Predictor
from .results import Prediction
from .tables import RECORDS, write_tables
from .video import VideoWriter, frame_rate

__all__ = ["FolderReport", "ResultFolder", "new_folder", "predict_to_folder"]


def new_folder(path: str | Path | None, default: str = "predictions") -> Path:
    """Creates a new folder, so that no two runs mix.

    Args:
        path: The folder; without it the first of `predictions`, `predictions-2`, ... that does not exist.
        default: The first name if no path is given.

    Raises:
        ValueError: If `path` exists.
        OSError: If it can't be made.
    """
    tries = (Path(f"{default}-{n}" if n > 1 else default) for n in count(1)) if path is None else [Path(path)]
    for folder in tries:
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise ValueError(f"{printable(path or default)} exists already: name another folder, so that no two runs mix")


class ResultFolder:
    """Writes predictions into a folder; a context.

    `predictions.jsonl` has one line a picture and grows with the run, as do the annotated pictures and videos. Tables
    (`write_tables`) are made from it when the context ends, also by an error or Ctrl-C. Without any prediction nothing
    is left behind.

    Args:
        folder: An empty folder, from `new_folder`.
        network: Whose predictions they are.
        pictures: Whether to write annotated pictures and videos besides the numbers.

    Raises:
        OSError: If the folder can't be written to; what was finished stays.
    """

    def __init__(self, folder: Path, network: Network, pictures: bool = True) -> None:
        self.folder = folder
        self.network = network
        self.pictures = pictures
        self.count = 0
        self._videos: dict[Path, VideoWriter] = {}
        text = "A folder of predictions by visionattn; it is not searched for pictures to predict.\n"
        (folder / OUTPUT_MARKER).write_text(text, encoding="utf-8")
        if network.task == "segmentation":
            self._write_classes()
        self._records = (folder / RECORDS).open("w", encoding="utf-8")

    def __enter__(self) -> "ResultFolder":
        return self

    def add(self, prediction: Prediction) -> None:
        """Writes a prediction: its images first, then its record."""
        picture = prediction.picture
        if self.pictures and picture.seconds is not None and picture.path is not None:
            self._video(picture.path).add(prediction.draw(inset=True))
        elif self.pictures:
            stem = self.folder / f"{self.count:05d}_{_stem(picture.path or Path(picture.name))}"
            pictures = {"": Image.fromarray(prediction.draw()), **prediction.maps()}
            for ending, drawn in pictures.items():
                _write_png(drawn, stem.with_name(f"{stem.name}{ending}.png"))
        record = {"id": self.count, "image": prediction.name, **prediction.record()}
        if picture.seconds is not None:
            record["seconds"] = round(picture.seconds, 3)
        self._records.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
        self._records.flush()
        self.count += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        faults = [_fault(self._records.close), _fault(self._close_videos)]
        if self.count == 0:
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        faults.append(_fault(self._write_tables))
        if error is None and any(faults):
            raise next(fault for fault in faults if fault)

    def _video(self, path: Path) -> VideoWriter:
        if path not in self._videos:
            self._close_videos()
            self._videos[path] = VideoWriter(self.folder / f"{self.count:05d}_{_stem(path)}", frame_rate(path))
        return self._videos[path]

    def _close_videos(self) -> None:
        while self._videos:
            self._videos.popitem()[1].close()

    def _write_tables(self) -> None:
        write_tables(self.folder, self.network.task, self.network.classes, self.network.class_ids)

    def _write_classes(self) -> None:
        """Writes what the values of the masks mean."""
        colours = self.network.colours or class_colours(self.network.classes)
        rows = ([n, name, *colours[n]] for n, name in enumerate(self.network.classes))
        _write_csv(self.folder / "classes.csv", ["number", "name", "red", "green", "blue"], rows)


def _fault(action: Callable[[], Any]) -> OSError | None:
    try:
        action()
    except OSError as error:
        return error
    return None


def _write_png(picture: Image.Image, path: Path) -> None:
    content = io.BytesIO()
    picture.save(content, "png", compress_level=4)
    with replacing(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def _stem(path: Path) -> str:
    """The file name for an image's results: its name without characters that some systems refuse, shortened."""
    stem = "".join("_" if c in '/\\:*?"<>|#' or ord(c) < 32 else c for c in path.stem)
    try:
        os.fsencode(stem)
    except UnicodeEncodeError:  # a web address, say, on a system whose names are in ASCII
        stem = stem.encode("ascii", "replace").decode().replace("?", "_")
    while len(os.fsencode(stem)) > 100:
        stem = stem[:-1]
    return stem


@dataclass(frozen=True)
class FolderReport:
    """The outcome of a prediction run.

    Args:
        folder: The results.
        count: How many pictures were predicted.
        skipped: Pictures that could not be, each with the reason.
    """

    folder: Path
    count: int
    skipped: tuple[tuple[str, str], ...]


def predict_to_folder(
    predictor: Predictor,
    inputs: Any,
    folder: str | Path | None = None,
    *,
    batch_size: int = 1,
    strict: bool = False,
    pictures: bool = True,
    on_result: Callable[[Prediction], None] = lambda result: None,
    on_skip: Callable[[str, str], None] = lambda name, reason: None,
) -> FolderReport:
    """Predicts and writes everything into a new folder, as `ResultFolder` does.

    Args:
        predictor: The network.
        inputs: As for `Predictor.__call__`.
        folder: A folder that does not exist yet; without it `predictions`, `predictions-2`, ...
        batch_size: Pictures a forward pass.
        strict: Whether to stop at the first picture that can't be predicted; otherwise such pictures are skipped and
            listed in `skipped.csv`.
        pictures: Whether to write annotated pictures and videos besides the numbers.
        on_result: Called with each prediction after it was written.
        on_skip: Called with the name of each skipped picture and the reason.

    Raises:
        ValueError: If the folder exists, or no picture could be predicted; with `strict`, if one could not.
        FileNotFoundError: If there is no such folder of pictures; with `strict`, if a picture is missing.
        OSError: If something can't be written; what was finished stays.
        KeyboardInterrupt: On Ctrl-C; the message says what was finished.
    """
    folder = new_folder(folder)
    skipped: list[tuple[str, str]] = []

    def skip(name: str, error: Exception) -> None:
        skipped.append((name, str(error)))
        on_skip(name, str(error))

    with ResultFolder(folder, predictor.network, pictures) as results:
        try:
            for result in predictor(inputs, batch_size, on_error=None if strict else skip):
                _add(results, result)
                on_result(result)
        except KeyboardInterrupt as stop:
            raise type(stop)(f"{results.count} pictures are finished in {printable(folder)}") from None
        finally:
            if skipped and results.count:
                _write_csv(folder / "skipped.csv", ["image", "reason"], skipped)
    if not results.count:
        raise ValueError(f"none of {len(skipped)} pictures could be predicted; the first: {skipped[0][1]}")
    return FolderReport(folder, results.count, tuple(skipped))


def _add(results: ResultFolder, result: Prediction) -> None:
    try:
        results.add(result)
    except OSError as error:
        done = f"{results.count} pictures are finished in {printable(results.folder)}"
        raise OSError(f"cannot write the results of {result.name}: {error.strerror or error}; {done}") from error


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
