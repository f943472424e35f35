"""Pictures in, predictions out."""

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2

from visionattn.data.images import IMAGE_SUFFIXES, read_image
from visionattn.utils.files import replacing

from .results import Prediction

__all__ = ["find_images", "save_predictions"]


def find_images(inputs: Sequence[str | Path]) -> list[Path]:
    """The pictures among files and in folders, folders searched through and sorted.

    Raises:
        FileNotFoundError: If an input is missing.
        ValueError: If there are none.
    """
    found: list[Path] = []
    for path in map(Path, inputs):
        if path.is_dir():
            found += sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        elif path.is_file():
            found.append(path)
        else:
            raise FileNotFoundError(f"no file or folder {path}")
    if not found:
        raise ValueError(f"no images in {', '.join(map(str, inputs))} (looked for {', '.join(IMAGE_SUFFIXES)})")
    return found


def save_predictions(predictions: Iterable[Prediction], folder: Path) -> list[tuple[Path, str]]:
    """Writes a table `predictions.csv`, what no table can hold as `predictions.json`, and every picture annotated.

    Args:
        predictions: All of one kind.
        folder: A new folder; it appears when all is written.

    Returns:
        Each picture's path and a line on what was predicted.
    """
    summaries, records = [], []
    with replacing(folder) as temporary:
        temporary.mkdir()
        with (temporary / "predictions.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            for number, prediction in enumerate(predictions):
                if number == 0:
                    writer.writerow(["image", *prediction.header()])
                writer.writerows([prediction.path, *row] for row in prediction.rows())
                name = f"{number:05d}_{prediction.path.stem}"
                pictures = {"": prediction.draw(read_image(prediction.path)), **prediction.maps()}
                for kind, picture in pictures.items():
                    stored = picture if picture.ndim == 2 else cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
                    cv2.imwrite(str(temporary / f"{name}{kind}.png"), stored)
                records += prediction.records()
                summaries.append((prediction.path, prediction.summary()))
        if records:
            (temporary / "predictions.json").write_text(json.dumps(records))
    return summaries
