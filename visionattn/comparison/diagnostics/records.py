"""Results of the diagnostics: a file a training, and all of them as a table that a later run resumes from."""

import csv
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from visionattn.utils.files import replacing

__all__ = ["Record", "export", "load_records", "restore"]

_FIELDS = ("row", "task", "trained_on", "seed", "accuracy", "scenes", "pointing", "pointing_chance", "train_seconds")
_FACTS = ("settings", "source", "revision", "versions", "machine")


@dataclass(frozen=True)
class Record:
    """One row on one task with one seed.

    Args:
        row: Name of the row.
        task: What was tested.
        trained_on: What was trained.
        seed: The seed.
        hits: Which test scenes are right, `(scenes,)` of booleans.
        train_seconds: Processor time of the training.
        pointing: Share of scenes in which attention is largest on the evidence; NaN where nothing says where it looks.
        pointing_chance: Mean share of the scene that the evidence covers.
        facts: `settings` (what tells runs of other settings apart), `source`, `revision`, `versions`, `machine`.
        look: Where attention looks in the first test scene, `(H, W)` of bytes, if the training was asked.
    """

    row: str
    task: str
    trained_on: str
    seed: int
    hits: np.ndarray
    train_seconds: float
    pointing: float
    pointing_chance: float
    facts: dict[str, str]
    look: np.ndarray | None = None

    @property
    def key(self) -> str:
        return f"{self.row}|{self.task}|{self.seed}"

    def line(self) -> dict[str, Any]:
        """Its line of the table."""
        own = {name: getattr(self, name) for name in _FIELDS if hasattr(self, name)}
        rounded: dict[str, Any] = {name: f"{own[name]:.4f}" for name in ("pointing", "pointing_chance")}
        rounded |= {"accuracy": f"{self.hits.mean():.4f}", "scenes": len(self.hits)}
        return {**own, **rounded, "train_seconds": f"{self.train_seconds:.1f}", **self.facts}

    def save(self, folder: Path) -> None:
        """Writes it to a file of its own in a folder."""
        path = folder / f"{self.key.replace('/', '-').replace('|', '.').replace(' ', '-')}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, temporary.open("wb") as file:
            look: dict[str, Any] = {} if self.look is None else {"look": self.look}
            np.savez(file, bits=np.packbits(self.hits), line=json.dumps(self.line()), **look)


def load_records(folder: Path, fits: Callable[[Record], bool]) -> dict[str, Record]:
    """The records in a folder that fit a run, by key; others are passed over."""
    found = {}
    for path in sorted(folder.glob("*.npz")):
        with np.load(path, allow_pickle=False) as kept:
            record = _record(json.loads(str(kept["line"])), kept["bits"], kept.get("look"))
        if fits(record):
            found[record.key] = record
    return found


def export(records: Iterable[Record], path: Path) -> None:
    """Writes records as `path`, a table, and beside it which scenes each got right and where its attention looks.

    These files are `<stem>-hits.npz` and `<stem>-looks.npz`.
    """
    ordered = sorted(records, key=lambda record: (record.row, record.task, record.seed))
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*_FIELDS, *_FACTS], lineterminator="\n")
        writer.writeheader()
        writer.writerows(record.line() for record in ordered)
    with replacing(_beside(path, "hits")) as temporary, temporary.open("wb") as file:
        bits = np.zeros((len(ordered), max(-(-len(record.hits) // 8) for record in ordered)), np.uint8)
        for own, record in zip(bits, ordered, strict=True):
            own[: -(-len(record.hits) // 8)] = np.packbits(record.hits)
        np.savez_compressed(file, keys=np.array([record.key for record in ordered]), bits=bits)
    with replacing(_beside(path, "looks")) as temporary, temporary.open("wb") as file:
        looks: dict[str, Any] = {record.key: record.look for record in ordered if record.look is not None}
        np.savez_compressed(file, **looks)


def restore(path: Path, folder: Path, fits: Callable[[Record], bool]) -> int:
    """Puts the records of an exported table that fit a run into a folder that lacks them; returns how many.

    Raises:
        ValueError: If the table and the files beside it do not belong together.
    """
    files = path, _beside(path, "hits"), _beside(path, "looks")
    if not all(file.is_file() for file in files):
        return 0
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    with np.load(files[1], allow_pickle=False) as kept, np.load(files[2], allow_pickle=False) as looks:
        keys = [*map(str, kept["keys"])]
        parts = zip(lines, kept["bits"], keys, strict=True)
        records = [_record(line, bits, looks.get(key)) for line, bits, key in parts]
    for record, line, key in zip(records, lines, keys, strict=True):
        if record.key != key or f"{record.hits.mean():.4f}" != line["accuracy"]:
            raise ValueError(f"{path} and {files[1].name} do not belong together: they differ in {key}")
    present = load_records(folder, fits)
    lacking = [record for record in records if fits(record) and record.key not in present]
    for record in lacking:
        record.save(folder)
    return len(lacking)


def _beside(path: Path, what: str) -> Path:
    return path.with_name(f"{path.stem}-{what}.npz")


def _record(line: dict[str, Any], bits: np.ndarray, look: np.ndarray | None) -> Record:
    hits = np.unpackbits(bits)[: int(line["scenes"])].astype(bool)
    return Record(
        line["row"],
        line["task"],
        line["trained_on"],
        int(line["seed"]),
        hits,
        train_seconds=float(line["train_seconds"]),
        pointing=float(line["pointing"]),
        pointing_chance=float(line["pointing_chance"]),
        facts={name: line[name] for name in _FACTS},
        look=look,
    )
