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
            np.savez(file, bits=np.packbits(self.hits), line=json.dumps(self.line()))


def load_records(folder: Path, fits: Callable[[Record], bool]) -> dict[str, Record]:
    """The records in a folder that fit a run, by key; others are passed over."""
    found = {}
    for path in sorted(folder.glob("*.npz")):
        with np.load(path, allow_pickle=False) as kept:
            record = _record(json.loads(str(kept["line"])), kept["bits"])
        if fits(record):
            found[record.key] = record
    return found


def export(records: Iterable[Record], path: Path) -> None:
    """Writes records as `path`, a table, and beside it `<stem>-hits.npz`, which scenes each got right."""
    ordered = sorted(records, key=lambda record: (record.row, record.task, record.seed))
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*_FIELDS, *_FACTS], lineterminator="\n")
        writer.writeheader()
        writer.writerows(record.line() for record in ordered)
    with replacing(_hits_of(path)) as temporary, temporary.open("wb") as file:
        bits = np.zeros((len(ordered), max(-(-len(record.hits) // 8) for record in ordered)), np.uint8)
        for own, record in zip(bits, ordered, strict=True):
            own[: -(-len(record.hits) // 8)] = np.packbits(record.hits)
        np.savez_compressed(file, keys=np.array([record.key for record in ordered]), bits=bits)


def restore(path: Path, folder: Path, fits: Callable[[Record], bool]) -> int:
    """Puts the records of an exported table that fit a run into a folder that lacks them; returns how many.

    Raises:
        ValueError: If the table and the file beside it do not belong together.
    """
    if not (path.is_file() and _hits_of(path).is_file()):
        return 0
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    with np.load(_hits_of(path), allow_pickle=False) as kept:
        records = [_record(line, bits) for line, bits in zip(lines, kept["bits"], strict=True)]
        for record, line, key in zip(records, lines, kept["keys"], strict=True):
            if record.key != key or f"{record.hits.mean():.4f}" != line["accuracy"]:
                raise ValueError(f"{path} and {_hits_of(path).name} do not belong together: they differ in {key}")
    present = load_records(folder, fits)
    lacking = [record for record in records if fits(record) and record.key not in present]
    for record in lacking:
        record.save(folder)
    return len(lacking)


def _hits_of(path: Path) -> Path:
    return path.with_name(f"{path.stem}-hits.npz")


def _record(line: dict[str, Any], bits: np.ndarray) -> Record:
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
    )
