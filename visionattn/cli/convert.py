"""`visionattn convert`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._values import StoreSettings

if TYPE_CHECKING:
    from visionattn.checkpoints.conversion import Conversion
    from visionattn.checkpoints.layout import Layout

SUMMARY = "convert an author's, timm's or our file of weights to our keys, or back into another format"
EXAMPLES = (
    "RESNET50_CBAM_new_name_wrap.pth",
    "triplet.pth --to va_resnet50_triplet --model-kwargs plugin.type=triplet plugin.kernel_size=3",
    "va_resnet50_cbam-from-official-0a1b2c3d.safetensors --export official",
    "work_dirs/a/best_top1.pth --to va_twins_svt_small --export timm --out mine.safetensors",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("file", type=Path, help="the weights")
    parser.add_argument(
        "--to", metavar="NAME", help="the network they belong to (default: recognised from the weights)"
    )
    parser.add_argument(
        "--model-kwargs",
        nargs="+",
        action=StoreSettings,
        default={},
        metavar="KEY=VALUE",
        help="arguments of the network: nested keys with dots",
    )
    parser.add_argument("--export", choices=("official", "timm"), help="write this format instead of ours")
    parser.add_argument(
        "--like",
        type=Path,
        metavar="FILE",
        help="an official file of the same network, which gives the layout and the entries that our network lacks; not "
        "needed for files that `convert` itself made of official ones",
    )
    parser.add_argument("--out", type=Path, help="a folder (default: here); with --export a file")
    parser.add_argument(
        "--golden",
        type=Path,
        default=Path("tests/golden"),
        help="folder of recorded outputs to verify with, as in a checkout (default: tests/golden)",
    )


def run(options: argparse.Namespace) -> None:
    """Converts a file of weights."""
    from rich.console import Console
    from rich.progress import track

    from visionattn.checkpoints import conversion, files
    from visionattn.checkpoints.verifying import verify

    if options.like and options.export != "official":
        raise ValueError("--like shows the official format: it goes with --export official")
    weights, layout = files.read_source(options.file)
    told, arguments, remembered = files.read_origin(options.file)
    searching = Console(stderr=True)
    done = conversion.convert(
        weights,
        layout,
        options.to or told,
        {**arguments, **options.model_kwargs},
        options.file.name,
        lambda names: track(names, "recognising", console=searching, disable=not searching.is_terminal),
    )
    how = ", ".join(f"{key}={value!r}" for key, value in done.arguments.items())
    print(f"{options.file}: {done.model}{f' with {how}' if how else ''}, in the {done.format} format")
    if options.export:
        _export(options, done, remembered)
        return
    print("\n".join(done.report()))
    if (verified := verify(done, options.golden)) is None:
        print("not verified: there is no recorded output of this network and format")
    else:
        print(f"verified: the official network's outputs in {verified[0]} come out, within {verified[1]:.0e}")
    path = conversion.save(done, options.out or Path())
    print(f"wrote {path}")
    overlay = {"file": str(path)}  # which also holds the arguments
    print(f"next  timm.create_model({done.model!r}, pretrained=True, pretrained_cfg_overlay={overlay})")


def _export(options: argparse.Namespace, done: "Conversion", remembered: "Layout | None") -> None:
    from visionattn.checkpoints import conversion, files

    rest: dict[str, Any] = {}
    if options.like:
        rest, remembered = files.read_source(options.like)
    elif done.format == options.export == "official":
        remembered = done.traced.layout
    exported, layout, dropped = conversion.export(done, remembered, options.export)
    everything = {**rest, **exported}
    exported = {key: everything[key] for key in layout.shapes if key in everything}
    path = options.out or Path(
        f"{done.model}-{options.export}.{'pth' if options.export == 'official' else 'safetensors'}"
    )
    if path.is_dir() or path.exists():
        raise ValueError(f"--out {path} exists already; name a new file")
    files.save_as(exported, layout, path)
    print(f"wrote {path}: {len(exported)} entries; converted back, they give the same weights")
    if left := [key for key in dropped if key not in exported]:
        some = f"{', '.join(left[:3])}{', ...' if len(left) > 3 else ''}"
        print(f"left out {len(left)} that our network lacks (load with strict=False): {some}")
