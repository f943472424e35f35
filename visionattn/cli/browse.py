"""`visionattn browse`."""

import argparse
from pathlib import Path

from ._common import add_config

SUMMARY = "draw what a config's data pipeline feeds the network: pictures with their classes, boxes or masks"
EXAMPLES = ("quickstart --count 32 --columns 8", "quickstart --split test --out test.png")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    add_config(parser)
    parser.add_argument("--split", choices=("train", "val", "test"), default="train", help="(default: train)")
    parser.add_argument("--count", type=int, default=16, help="how many samples (default: 16)")
    parser.add_argument("--columns", type=int, default=4, help="how many in a row (default: 4)")
    parser.add_argument("--out", type=Path, default=Path("browse.png"), help="the picture (default: browse.png)")


def run(options: argparse.Namespace) -> None:
    """Draws the inputs that the data pipeline gives the network."""
    from PIL import Image

    from visionattn.engine import draw_samples, load_config
    from visionattn.utils.files import replacing

    if options.count < 1 or options.columns < 1:
        raise ValueError(f"--count and --columns must be at least 1, got {options.count} and {options.columns}")
    if options.out.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise ValueError(f"--out must end in .png or .jpg, got {options.out}")
    config = options.loaded = load_config(options.config, options.cfg_options, options.model)
    if config.get(f"{options.split}_dataloader") is None:
        raise ValueError(f"{options.config} says nothing about {options.split}_dataloader, which this needs")
    picture = Image.fromarray(draw_samples(config, options.split, options.count, options.columns))
    with replacing(options.out) as temporary:
        picture.save(temporary)
    print(f"{options.out}: {options.split} samples of {options.config}, {picture.width}x{picture.height} pixels")
