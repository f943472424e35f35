"""How many times its map each block and operation may move through memory and keep: tests/byte_budgets.json of a checkout.

Counted operator by operator, so exact and free of noise: on the meta device in bfloat16, where the formulas for GPUs run
without our kernels, and on the CPU in float32. After a change,

    python -m visionattn.testing.byte_budgets --update [NAME ...]

writes what the blocks take now; the difference is for the review to judge.
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

import torch

from visionattn.profiling.roofline import Block, blocks, count
from visionattn.utils.files import replacing

__all__ = ["DEVICES", "FILE", "counted", "read", "renew", "subjects"]

DEVICES = {"meta": torch.bfloat16, "cpu": torch.float32}
FILE = Path(__file__).parents[2] / "tests" / "byte_budgets.json"
# Forward pass, backward pass, kept between them, in bytes of the map.
Amounts = list[float]


def subjects() -> dict[str, Block]:
    """All that has a budget, by name."""
    return {block.name: block for block in blocks(batch=2, side=28)}


def counted(block: Block, device: str) -> Amounts:
    """What a block takes on `meta` or `cpu`."""
    dtype = DEVICES[device]
    unit = torch.Size(block.shapes[0]).numel() * dtype.itemsize
    traffic = count(block, dtype=dtype, device=device)
    return [round(amount / unit, 1) for amount in (traffic.forward.bytes, traffic.backward.bytes, traffic.saved)]


def read(path: Path = FILE) -> dict[str, dict[str, Amounts]]:
    """The budgets: name, device, amounts."""
    return json.loads(path.read_text()) if path.is_file() else {}


def renew(path: Path = FILE, names: Iterable[str] = ()) -> dict[str, dict[str, Amounts]]:
    """Writes budgets that are what the blocks take now, and returns them.

    Args:
        path: The file.
        names: Which blocks; all by default. What no longer exists goes in any case.

    Raises:
        ValueError: If there is no block of a name.
    """
    known, old, wanted = subjects(), read(path), set(names)
    if unknown := wanted - known.keys():
        raise ValueError(f"no block is called {', '.join(sorted(unknown))}; there are: {', '.join(known)}")
    budgets = {
        name: {device: counted(block, device) for device in DEVICES} if not wanted or name in wanted else old[name]
        for name, block in known.items()
        if not wanted or name in wanted or name in old
    }
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(budget)}" for name, budget in budgets.items())
    with replacing(path) as temporary:
        temporary.write_text(f"{{\n{lines}\n}}\n")
    return budgets


def main() -> None:
    """Shows what blocks take, or writes it down."""
    parser = argparse.ArgumentParser(prog="python -m visionattn.testing.byte_budgets", description=main.__doc__)
    parser.add_argument("names", nargs="*", help="names of blocks and of ops.FUNCTION (default: all)")
    parser.add_argument("--update", action="store_true", help="write tests/byte_budgets.json")
    options = parser.parse_args()
    old = read()
    if options.update:
        new = renew(names=options.names)
    else:
        chosen = {name: block for name, block in subjects().items() if not options.names or name in options.names}
        new = {name: {device: counted(block, device) for device in DEVICES} for name, block in chosen.items()}
    for name in sorted(new.keys() | (old.keys() if options.update else ())):
        before, after = old.get(name), new.get(name)
        if before != after:
            print(f"{name}: {before or 'new'} -> {after or 'gone'}")


if __name__ == "__main__":
    main()
