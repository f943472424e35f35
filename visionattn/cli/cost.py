"""`visionattn cost`."""

import argparse
from pathlib import Path

SUMMARY = "count what each plug-in adds to a ResNet-50: parameters, multiplications, memory for the backward pass"
EXAMPLES = ("--out docs/results/plugins-cost.md",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("--size", type=int, default=224, help="side of the picture (default: 224)")
    parser.add_argument("--out", type=Path, required=True, help="the table, a .md file; a .csv is written beside it")


def run(options: argparse.Namespace) -> None:
    """Counts what plug-ins add to a network."""
    from visionattn.profiling.cost import measure, write_table

    if options.size < 1:
        raise ValueError(f"--size must be at least 1, got {options.size}")
    print(write_table(measure(options.size), options.size, options.out))
