"""`visionattn cost`."""

import argparse
from pathlib import Path

SUMMARY = "count what each plug-in adds to a ResNet-50: parameters, multiplications, memory for the backward pass"
EXAMPLES = ("", "--size 128 --plugins cbam triplet", "--out docs/results/plugins-cost.md")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("--size", type=int, default=224, help="side of the picture (default: 224)")
    parser.add_argument("--plugins", nargs="+", default=[], metavar="NAME", help="names of plug-ins (default: all)")
    parser.add_argument("--out", type=Path, help="also write the table to this .md file, and a .csv beside it")


def run(options: argparse.Namespace) -> None:
    """Counts the cost that plug-ins add to a network."""
    from visionattn.plugins import list_plugins
    from visionattn.profiling.cost import format_table, measure, write_table

    if options.size < 1:
        raise ValueError(f"--size must be at least 1, got {options.size}")
    if options.out and options.out.suffix != ".md":
        raise ValueError(f"--out must be a .md file, got {options.out}")
    costs = measure(options.size, options.plugins)
    if unknown := set(options.plugins) - {cost.name for cost in costs}:
        raise ValueError(f"unknown plug-in {', '.join(sorted(unknown))}; there are: {', '.join(list_plugins())}")
    print(write_table(costs, options.size, options.out) if options.out else format_table(costs, options.size))
