"""Writes tables and COCO files from the records of a prediction run."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from visionattn.utils.files import replacing

__all__ = ["RECORDS", "read_records", "write_tables"]

RECORDS = "predictions.jsonl"  # one line a picture, written as it is predicted


def read_records(folder: str | Path) -> Iterator[dict[str, Any]]:
    """The records in a folder of predictions, in order; an incomplete last line is dropped."""
    with (Path(folder) / RECORDS).open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)


def write_tables(folder: str | Path, task: str, classes: Sequence[str], class_ids: Sequence[int] | None = None) -> None:
    """Writes `predictions.csv`; of detections also COCO's results `predictions.json` and their data set `coco.json`.

    Args:
        folder: A folder with `predictions.jsonl`.
        task: `classification`, `detection` or `segmentation`.
        classes: Names of the classes.
        class_ids: COCO's category id of each class; without it class numbers plus one.
    """
    folder = Path(folder)
    with replacing(folder / "predictions.csv") as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        _write_rows(csv.writer(file), read_records(folder), task)
    if task == "detection":
        ids = [int(i) for i in class_ids or range(1, len(classes) + 1)]
        images = [{"id": r["id"], "file_name": r["image"], **_size(r)} for r in read_records(folder)]
        categories = [{"id": i, "name": name} for i, name in zip(ids, classes, strict=True)]
        dataset = {"images": images, "annotations": [], "categories": categories}
        _write_text(folder / "coco.json", [_json(dataset)])
        _write_text(folder / "predictions.json", _listed(_coco_results(read_records(folder), ids)))


def _write_rows(writer: Any, records: Iterator[dict[str, Any]], task: str) -> None:
    header, rows = _COLUMNS[task]
    for number, record in enumerate(records):
        if number == 0:
            writer.writerow(["image", *header(record)])
        writer.writerows([record["image"], *row] for row in rows(record))


def _class_header(record: dict[str, Any]) -> list[str]:
    return [f"{what}_{k}" for k in range(1, len(record["classes"]) + 1) for what in ("label", "score")]


def _class_rows(record: dict[str, Any]) -> Iterator[list[Any]]:
    yield [cell for c in record["classes"] for cell in (c["label"], f"{c['score']:.6f}")]


def _object_rows(record: dict[str, Any]) -> Iterator[list[Any]]:
    for found in record["objects"]:
        left, top, width, height = found["bbox"]
        sides = (left, top, left + width, top + height)
        yield [found["label"], f"{found['score']:.6f}", *(f"{side:.2f}" for side in sides)]


def _share_rows(record: dict[str, Any]) -> Iterator[list[Any]]:
    return ([share["label"], f"{share['share']:.6f}"] for share in record["shares"])


_Header = Callable[[dict[str, Any]], list[str]]
_Rows = Callable[[dict[str, Any]], Iterator[list[Any]]]
_COLUMNS: dict[str, tuple[_Header, _Rows]] = {
    "classification": (_class_header, _class_rows),
    "detection": (lambda record: ["label", "score", "left", "top", "right", "bottom"], _object_rows),
    "segmentation": (lambda record: ["label", "share"], _share_rows),
}


def _size(record: dict[str, Any]) -> dict[str, int]:
    return {"height": record["height"], "width": record["width"]}


def _coco_results(records: Iterator[dict[str, Any]], ids: Sequence[int]) -> Iterator[dict[str, Any]]:
    for record in records:
        for found in record["objects"]:
            result = {
                "image_id": record["id"],
                "category_id": ids[found["class"]],
                "bbox": found["bbox"],
                "score": found["score"],
            }
            yield result | ({"segmentation": found["segmentation"]} if "segmentation" in found else {})


def _listed(items: Iterator[Any]) -> Iterator[str]:
    """Writes a JSON list item by item, since there may be too many masks to hold in memory."""
    yield "["
    for number, item in enumerate(items):
        yield f"{',' if number else ''}\n{_json(item)}"
    yield "\n]\n"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _write_text(path: Path, parts: Iterable[str]) -> None:
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(parts)
