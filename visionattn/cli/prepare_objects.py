"""`visionattn prepare-objects`."""

import argparse
from pathlib import Path

SUMMARY = (
    "compose synthetic scenes of Tux Paint's stamps, cut-out photographs of eight classes of objects, as a COCO data "
    "set with masks"
)
EXAMPLES = ("", "--source unpacked/usr/share/tuxpaint/stamps --train 500 --test 100 --out data/stamps-small")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument(
        "--source", type=Path, help="folder of the stamps (default: where Debian's tuxpaint-stamps-default has them)"
    )
    parser.add_argument("--out", type=Path, default=Path("data/stamps"), help="a new folder (default: data/stamps)")
    parser.add_argument("--train", type=int, default=4000, help="number of training scenes (default: 4000)")
    parser.add_argument("--test", type=int, default=400, help="number of test scenes (default: 400)")
    parser.add_argument("--size", type=int, default=256, help="side of the pictures in pixels (default: 256)")
    parser.add_argument("--seed", type=int, default=0, help="other seeds give other scenes (default: 0)")


def run(options: argparse.Namespace) -> None:
    """Composes the scenes."""
    from rich.progress import track

    from visionattn.data.synthetic.objects import SYSTEM_FOLDER, prepare_stamps

    counts = {"train": options.train, "test": options.test}
    source = options.source or SYSTEM_FOLDER
    prepare_stamps(source, options.out, counts, options.size, options.seed, lambda numbers, what: track(numbers, what))
    print(f"{counts['train']} scenes to train and {counts['test']} to test are in {options.out}")
