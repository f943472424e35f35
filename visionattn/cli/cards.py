"""`visionattn cards`."""

import argparse
from pathlib import Path

SUMMARY = "write the cards of the packaged checkpoints, and the table of them in docs, from the manifest"
EXAMPLES = ("",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument(
        "--manifest",
        type=Path,
        default=Path("checkpoints/manifest.json"),
        help="the manifest (default: checkpoints/manifest.json)",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("checkpoints/README.md"), help="the cards (default: checkpoints/README.md)"
    )
    parser.add_argument(
        "--page",
        type=Path,
        default=Path("docs/networks.md"),
        help="the page with the table (default: docs/networks.md)",
    )


def run(options: argparse.Namespace) -> None:
    """Writes the manifest as a human-readable page."""
    from visionattn.checkpoints import write_cards, write_table

    if not options.manifest.is_file():
        raise FileNotFoundError(f"no manifest at {options.manifest}; run this in a checkout, or name it by --manifest")
    write_cards(options.manifest, options.out)
    print(write_table(options.manifest, options.page))
    print(f"\nwritten into {options.page}; the cards are in {options.out}")
