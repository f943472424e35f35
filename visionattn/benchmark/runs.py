"""A whole run: each row is written as soon as it is measured."""

import gc
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from .record import Record, extended, label, save, surroundings
from .rows import CompileBudget, Unequal, measure
from .suites import Plan
from .timing import measure_ceilings, one_thread, streaming

__all__ = ["run"]


def run(plan: Plan, out: Path, base: Record | None = None) -> Record:
    """Measures every row of a plan and writes the record after each.

    A row whose contenders disagree is refused and not timed; the other rows go on.

    Args:
        plan: What to measure.
        out: The JSON file.
        base: An earlier record, whose other rows are kept.

    Returns:
        The record.

    Raises:
        ValueError: If there is no such device, or the earlier record is of another machine or other versions.
    """
    device = plan.device
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: PyTorch sees no CUDA device on this machine")
    print(f"plan: {plan}", flush=True)
    started = time.monotonic()
    budget = CompileBudget(plan.compilers)
    # Rounding to 10 bits of the fraction would hide errors; a matrix product does so on request only.
    torch.backends.cudnn.allow_tf32 = False
    with one_thread(), streaming() if plan.loaded else nullcontext():
        dtypes = list(dict.fromkeys([torch.float32, *(case.dtype for case, _ in plan.rows)]))
        record = surroundings(device) | {"seconds": plan.seconds, "ceilings": measure_ceilings(device, dtypes)}
        record |= {"suite": plan.suite, "loaded": plan.loaded, "rows": [], "left_out": []}
        extended(base, record)  # which fails before anything is measured, if at all
        for number, (case, mode) in enumerate(plan.rows, 1):
            if time.monotonic() - started > plan.limit:
                record["left_out"] += [f"{case} {mode}: no time was left" for case, mode in plan.rows[number - 1 :]]
                break
            row: dict[str, Any] = {"suite": case.suite, "name": case.name, "shape": list(case.shape)}
            row |= {"layout": case.layout, "dtype": str(case.dtype).removeprefix("torch."), "mode": mode}
            try:
                row |= measure(
                    case, mode, device=device, seconds=plan.seconds, ceilings=record["ceilings"], budget=budget
                )
            except Exception as error:  # A kernel that fails, or a full device, must not cost the other rows.
                kind = "" if isinstance(error, Unequal) else f"{type(error).__name__}: "
                row |= {"reference": next(iter(case.baselines)), "refused": kind + " ".join(str(error).split())[:300]}
            record["rows"].append(row)
            record["wall_seconds"] = round(time.monotonic() - started, 1)
            save(extended(base, record), out)
            where = f"[{number}/{len(plan.rows)}, {record['wall_seconds']:.0f} s] {label(row)}"
            print(f"{where}: {_summary(row)}", flush=True)
            gc.collect()
            if device == "cuda":
                torch.cuda.empty_cache()
    record = extended(base, record)
    save(record, out)
    return record


def _summary(row: dict[str, Any]) -> str:
    if "refused" in row:
        return f"REFUSED: {row['refused']}"
    ahead = [f"{facts['ratio']['p50']:.2f}x {name}" for name, facts in row["contenders"].items() if name != "ours"]
    noise = f"noise {row['noise']['p10']:.2f}-{row['noise']['p90']:.2f}"
    return f"{', '.join(ahead)} ({row['rounds']} rounds, {noise})"
