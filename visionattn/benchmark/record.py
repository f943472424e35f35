"""The record of a run: one JSON file from which tables, plots and comparisons are generated."""

import json
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import timm
import torch

from visionattn.utils.files import replacing

__all__ = ["SCHEMA", "compare", "extended", "key", "label", "later_revisions", "load", "own_revision", "save"]
__all__ += ["surroundings", "versions_of"]

SCHEMA = 2
Row = dict[str, Any]
Record = dict[str, Any]


def surroundings(device: str) -> Record:
    """The machine, the versions and the revision."""
    versions = {"torch": torch.__version__, "timm": timm.__version__, "numpy": numpy.__version__}
    versions["Python"] = platform.python_version()
    facts: dict[str, Any] = {"kind": device, "name": _cpu_name()}
    if device == "cuda":
        import importlib.metadata

        properties = torch.cuda.get_device_properties(0)
        facts |= {"name": properties.name, "memory": properties.total_memory, "l2": properties.L2_cache_size}
        facts["capability"] = f"{properties.major}.{properties.minor}"
        versions["CUDA"] = torch.version.cuda or "unknown"
        try:
            versions["triton"] = importlib.metadata.version("triton")
        except importlib.metadata.PackageNotFoundError:
            versions["triton"] = "none"
    return {"schema": SCHEMA, "device": facts, "versions": versions, "revision": _revision()}


def versions_of(record: Record) -> str:
    """The versions of a record in a line."""
    return ", ".join(f"{name} {version}" for name, version in record["versions"].items())


def save(record: Record, path: Path) -> None:
    """Writes a record; a killed run keeps the rows measured so far."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n")


def load(path: Path) -> Record:
    """Reads a record.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a benchmark's record, or of another schema.
    """
    try:
        record = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    if not isinstance(record, dict) or "rows" not in record:
        raise ValueError(f"{path} is not a record of `visionattn benchmark`: it has no rows")
    if record.get("schema", 1) != SCHEMA:
        raise ValueError(f"{path} has schema {record.get('schema', 1)}, this version reads {SCHEMA}")
    return record


def label(row: Row) -> str:
    """A short label for a row."""
    dtype = "" if row["dtype"] == "float32" else row["dtype"]
    parts = (row["name"], "x".join(map(str, row["shape"])), row["layout"], dtype, row["mode"])
    return " ".join(part for part in parts if part)


def key(row: Row) -> tuple[str, ...]:
    """The key by which two rows are the same measurement."""
    return row["suite"], label(row), row["reference"]


def extended(base: Record | None, new: Record) -> Record:
    """A record with the rows of a later run, in the place of the same measurements or at the end.

    Each of these rows keeps the revision it was measured at, where that is another.

    Args:
        base: The earlier record; without it, the later one is all.
        new: That of the later run.

    Raises:
        ValueError: If they are not of one machine with the same versions and load: then all has to be measured again.
    """
    if base is None:
        return new
    own = own_revision(base, new)
    fresh = {key(row): row | own for row in new["rows"]}
    rows = [fresh.pop(key(row), row) for row in base["rows"]]
    left_out = dict.fromkeys([*base.get("left_out", []), *new.get("left_out", [])])
    return base | {"rows": [*rows, *fresh.values()], "left_out": [*left_out]}


def own_revision(base: Record, new: Record) -> Row:
    """What rows of a later run say of its revision: nothing where it is the record's.

    Raises:
        ValueError: If they are not of one machine with the same versions and load.
    """
    for fact in ("device", "versions", "loaded"):
        before, now = base.get(fact, False), new.get(fact, False)
        if before != now:
            raise ValueError(f"a record of {fact} {before} can't be extended with {fact} {now}")
    return {} if new["revision"] == base["revision"] else {"revision": new["revision"]}


def later_revisions(record: Record) -> list[str]:
    """A line for each revision besides the record's own, of what was measured then."""
    names: dict[str, dict[str, None]] = {}
    for row in record["rows"]:
        if "revision" in row:
            names.setdefault(row["revision"], {})[row["name"]] = None
    return [f"At revision {revision}: {', '.join(found)}." for revision, found in names.items()]


def compare(head: Record, base: Record) -> Iterator[tuple[str, float, tuple[float, float]]]:
    """How ours changed from one record to another, row by row.

    The machine may have been slower for one of them, so the ratio to the reference, which no change of ours touches, is
    what is compared.

    Yields:
        The row's label, the speed of `head` over that of `base`, and the range that noise alone may give.
    """
    before = {key(row): row for row in base["rows"] if "contenders" in row}
    for row in head["rows"]:
        old = before.get(key(row))
        if old is None or "contenders" not in row:
            continue
        ratios = [r["contenders"][r["reference"]]["ratio"]["p50"] for r in (row, old)]
        noise = [(r["noise"]["p10"], r["noise"]["p90"]) for r in (row, old)]
        yield label(row), ratios[0] / ratios[1], (min(low for low, _ in noise), max(high for _, high in noise))


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    models = [line for line in cpuinfo.read_text().splitlines() if "model name" in line] if cpuinfo.exists() else []
    return models[0].partition(":")[2].strip() if models else platform.machine()


def _revision() -> str:
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        git = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip()
    except OSError:
        git = ""
    return git or "unknown"
