"""How many times its map each block may move through memory and keep: tests/byte_budgets.json of a checkout.

Counted operator by operator, so exact and free of noise: on the meta device in bfloat16, where the formulas for GPUs
run without our kernels, and on the CPU in float32. After a change,

    python -m visionattn.testing.byte_budgets --update [NAME ...]

writes what the blocks take now; the difference is for the review to judge.
"""

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

from visionattn.profiling.roofline import Block, blocks, count
from visionattn.utils.files import replacing

__all__ = ["DEVICES", "FILE", "counted", "measure", "read", "subjects", "write"]

DEVICES = {"meta": torch.bfloat16, "cpu": torch.float32}
FILE = Path(__file__).parents[2] / "tests" / "byte_budgets.json"
# Forward pass, backward pass, kept between them, in bytes of the map.
Amounts = list[float]


def subjects() -> dict[str, Block]:
    """Everything that has a budget, by name."""
    return {block.name: block for block in blocks(batch=2, side=28)}


def counted(block: Block, device: str) -> Amounts:
    """The memory traffic of a block on `meta` or `cpu`."""
    dtype = DEVICES[device]
    unit = torch.Size(block.shapes[0]).numel() * dtype.itemsize
    traffic = count(block, dtype=dtype, device=device)
    return [round(amount / unit, 1) for amount in (traffic.forward.bytes, traffic.backward.bytes, traffic.saved)]


def read(path: Path = FILE) -> dict[str, dict[str, Amounts]]:
    """The budgets: name, device, amounts."""
    return json.loads(path.read_text()) if path.is_file() else {}


def measure(names: Iterable[str] = ()) -> dict[str, dict[str, Amounts]]:
    """The current memory traffic of blocks, in the form of the budgets.

    Args:
        names: Which; all by default.

    Raises:
        ValueError: If there is no block of a name.
    """
    known, wanted = subjects(), list(names)
    if unknown := [name for name in wanted if name not in known]:
        raise ValueError(f"unknown block {', '.join(unknown)}; there are: {', '.join(known)}")
    return {name: {device: counted(known[name], device) for device in DEVICES} for name in wanted or known}


def write(budgets: Mapping[str, Mapping[str, Amounts]], path: Path = FILE) -> None:
    """Writes the budgets of all blocks that still exist, a line each."""
    lines = [f" {json.dumps(name)}: {json.dumps(budgets[name])}" for name in subjects() if name in budgets]
    with replacing(path) as temporary:
        temporary.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def main(arguments: Sequence[str] | None = None, path: Path = FILE) -> None:
    """Shows which blocks differ from their budget, or rewrites the budgets."""
    parser = argparse.ArgumentParser(prog="python -m visionattn.testing.byte_budgets", description=main.__doc__)
    parser.add_argument("names", nargs="*", help="names of blocks and of ops.FUNCTION (default: all)")
    parser.add_argument("--update", action="store_true", help=f"write {path.name}")
    options = parser.parse_args(arguments)
    old, new = read(path), measure(options.names)
    if options.update:
        write({**old, **new}, path)
    gone = [name for name in old if name not in subjects()]
    for name, before, after in [(n, old.get(n, "new"), new[n]) for n in new] + [(n, old[n], "gone") for n in gone]:
        if before != after:
            print(f"{name}: {before} -> {after}")


if __name__ == "__main__":
    main()
