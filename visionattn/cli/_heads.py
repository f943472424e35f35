"""The statistics of attention heads as a table on the console and as CSV."""

from pathlib import Path
from typing import Any

__all__ = ["show_heads"]

_ROWS = 64  # that a terminal shows head by head


def show_heads(rows: list[dict[str, Any]], csv_file: Path | None) -> None:
    """Prints the statistics, of large networks only the means of each layer, and writes them."""
    import csv

    from rich.console import Console
    from rich.table import Table

    from visionattn.explain.head_table import NUMBERS
    from visionattn.utils.files import replacing

    if csv_file is not None:
        with replacing(csv_file) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    shown = rows
    if len(rows) > _ROWS:
        by_layer: dict[int, list[dict[str, Any]]] = {}
        for row in rows:
            by_layer.setdefault(row["layer"], []).append(row)
        shown = [{**heads[0], "head": f"mean of {len(heads)}", **_means(heads, NUMBERS)} for heads in by_layer.values()]
    table = Table("layer", padding=(0, 0))  # fits a terminal of 80 columns; the CSV also names the modules
    for name in ("head", *NUMBERS):
        table.add_column(name.replace("_", "\n"), no_wrap=True, justify="right")
    for row in shown:
        numbers = ("-" if row[name] is None else f"{row[name]:.3g}" for name in NUMBERS)
        table.add_row(str(row["layer"]), str(row["head"]), *numbers)
    Console().print(table)
    if csv_file is not None:
        print(csv_file)
    elif shown is not rows:
        print(f"--csv FILE has all {len(rows)} heads")


def _means(rows: list[dict[str, Any]], names: tuple[str, ...]) -> dict[str, float | None]:
    return {name: None if rows[0][name] is None else sum(row[name] for row in rows) / len(rows) for name in names}
