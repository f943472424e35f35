"""`visionattn init`."""

import argparse
from pathlib import Path

from ._common import add_own_data

SUMMARY = "write a config of a few lines that trains a network on data of your own"
EXAMPLES = (
    "--data photos/ --model va_resnet50_cbam",
    "--data annotations/instances.json --task instance --model resnet50.a1_in1k --pretrained --out mine.py",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    add_own_data(parser, required=True)
    parser.add_argument("--model", required=True, metavar="NAME", help="a timm network, such as va_resnet50_cbam")
    parser.add_argument("--out", type=Path, help="the config (default: <data>-<model>.py); an existing one stays")


def run(options: argparse.Namespace) -> None:
    """Writes the config and prints how to train with it."""
    import shlex

    from visionattn.engine.own_data import write_config

    path = options.out or Path(f"{Path(options.data).resolve().stem}-{options.model}.py")
    if path.exists():
        raise ValueError(f"{path} exists already; name another file by --out")
    split = Path("work_dirs") / path.stem
    found = write_config(
        path, options.data, options.model, task=options.task, pretrained=options.pretrained, split_dir=split
    )
    print(path.read_text(encoding="utf-8"))
    print(f"written to {path}; {found.split}")
    print(f"next: visionattn train {shlex.quote(str(path))}")
