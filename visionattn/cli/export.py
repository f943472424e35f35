"""`visionattn export`."""

import argparse
import sys
from pathlib import Path
from typing import Any

from ._common import add_cfg_options

SUMMARY = "export a trained network to ONNX or PyTorch's pt2 format and compare what the file computes"
EXAMPLES = (
    "va_resnet10n_cbam.digits --format onnx --dynamic",
    "va_resnet10n_cbam.digit_scenes_fcos --format onnx --size 128",
    "quickstart-segmentation --checkpoint work_dirs/quickstart-segmentation/best_seg_miou.pth --format pt2",
    "va_resnet50_cbam.my_photos --format onnx --half --image photo.jpg --out photos.onnx",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument(
        "model",
        metavar="NAME|FILE",
        help="name or file of a published checkpoint, hf-hub:ORG/NAME, a pretrained network of timm's, or with "
        "--checkpoint a config or a network of timm's",
    )
    parser.add_argument(
        "--checkpoint", metavar="FILE", help="weights for a config or a network, as training wrote them"
    )
    parser.add_argument("--format", choices=("onnx", "pt2"), required=True, help="the kind of file")
    parser.add_argument(
        "--dynamic",
        action="store_true",
        help="take batches of any size, and pictures of any size where the network can; detectors keep one size",
    )
    parser.add_argument("--half", action="store_true", help="compute in float16")
    parser.add_argument(
        "--size",
        type=int,
        nargs="+",
        metavar="PIXELS",
        help="height and width, or one number for both (default: those the network was trained for)",
    )
    parser.add_argument("--image", metavar="FILE", help="a picture to compare with (default: a photograph with digits)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="a new file (default: NAME.onnx or NAME.pt2)")
    add_cfg_options(parser)


def run(options: argparse.Namespace) -> None:
    """Exports a network."""
    if options.size is not None and (len(options.size) > 2 or min(options.size) < 1):
        raise ValueError(f"--size must be one number or height and width, at least 1, got {options.size}")
    from visionattn.inference.exporting import export_network

    done = export_network(
        _model(options),
        options.checkpoint,
        format=options.format,
        out=options.out,
        dynamic=options.dynamic,
        half=options.half,
        size=None if options.size is None else (options.size[0], options.size[-1]),
        image=options.image,
    )
    for line in done.parity:
        print(f"parity  {line}")
    if not done.compared:
        print("visionattn: warning: nothing was compared: the network finds no object", file=sys.stderr)
    height, width = done.facts["size"]
    dynamic = done.facts["dynamic"]
    print(
        f"wrote   {done.path} ({done.path.stat().st_size / 1e6:.2f} MB): {done.facts['dtype']} pictures of "
        f"{height}x{width}, normalised; {', '.join(done.facts['outputs'])}; open: {', '.join(dynamic) or 'nothing'}"
    )


def _model(options: argparse.Namespace) -> Any:
    if not options.cfg_options:
        return options.model
    from visionattn.engine.config import load_config

    options.loaded = load_config(options.model, options.cfg_options, register=False)
    return options.loaded
