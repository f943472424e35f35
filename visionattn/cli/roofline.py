"""`visionattn roofline`."""

import argparse
from pathlib import Path

SUMMARY = "count what each block moves through memory and computes, and how fast it could be"
EXAMPLES = ("", "triplet cbam ops.axis_pools --batch 64 --dtype float32 --bandwidth 1.9 --peak 312")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("names", nargs="*", help="plug-ins, mixers and ops.FUNCTION (default: all)")
    parser.add_argument("--batch", type=int, default=128, help="images per batch (default: 128)")
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16", help="(default: bfloat16)"
    )
    parser.add_argument(
        "--bandwidth",
        type=float,
        default=3.0,
        help="memory bandwidth in TB/s, read and written (default: 3.0, an H100)",
    )
    parser.add_argument("--peak", type=float, default=798.0, help="matrix products in TFLOP/s (default: 798, an H100)")
    parser.add_argument("--out", type=Path, help="also write the table to this file")


def run(options: argparse.Namespace) -> None:
    """Counts the memory traffic and operations of the blocks."""
    import torch

    from visionattn.profiling.roofline import blocks, count, format_table
    from visionattn.utils.files import replacing

    if min(options.batch, options.bandwidth, options.peak) <= 0:
        raise ValueError("--batch, --bandwidth and --peak must be above 0")
    dtype = getattr(torch, options.dtype)
    chosen = [block for block in blocks(options.batch, 56) if not options.names or block.name in options.names]
    unknown = set(options.names) - {block.name for block in chosen}
    if unknown:
        known = ", ".join(block.name for block in blocks(1, 56))
        raise ValueError(f"unknown block {', '.join(sorted(unknown))}; there are: {known}")
    counted = [(block, count(block, dtype=dtype)) for block in chosen]
    text = format_table(counted, dtype.itemsize, options.bandwidth * 1e12, options.peak * 1e12)
    if options.out:
        with replacing(options.out) as temporary:
            temporary.write_text(text, encoding="utf-8")
    print(text)
