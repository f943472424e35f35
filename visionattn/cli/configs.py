"""`visionattn configs`."""

import argparse
from pathlib import Path

SUMMARY = "list the packaged configs, show one with all that it inherits, or copy one to go on from"
EXAMPLES = ("", "--show quickstart", "--copy quickstart my_config.py")
NEEDS_NETWORKS = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--show", metavar="NAME", help="print a config with all that it inherits in one text")
    what.add_argument(
        "--copy",
        nargs="+",
        metavar=("NAME", "DEST"),
        help="write a config to a file of one's own, DEST or else <name>.py here; it inherits what the original does",
    )


def run(options: argparse.Namespace) -> None:
    """Lists, shows or copies packaged configs."""
    if options.show:
        from visionattn.engine import load_config

        print(load_config(options.show).pretty_text)
    elif options.copy:
        _copy(*options.copy)
    else:
        _list()


def _list() -> None:
    from visionattn.utils.config_files import describe, list_configs, variants
    from visionattn.utils.resources import config_dir

    folder = None
    for name in list_configs():
        path = config_dir() / f"{name}.py"
        if path.parent != folder:
            print(f"{'' if folder is None else chr(10)}{path.parent.name}")
            folder = path.parent
        print(f"  {path.stem}\n      {describe(path)}")
        if patterns := variants(path):
            print(f"      for {', '.join(patterns)} too, by --model or with that network in the name")
    print(
        "\nThese are recipes: `visionattn train NAME --model NETWORK` trains another network of timm's by any of them, "
        "\nwith the weights of a tag if it has one. In a file of your own, `_base_ = ['visionattn::NAME']` inherits."
    )


def _copy(name: str, destination: str = "", *rest: str) -> None:
    from visionattn.utils.config_files import copy_text, find_config
    from visionattn.utils.files import replacing

    if rest:
        raise ValueError(f"--copy takes a name and a file, got {', '.join([name, destination, *rest])}")
    file = find_config(name)
    path = Path(destination or f"{file.name}.py")
    path = path / f"{file.name}.py" if path.is_dir() else path
    if path.suffix != ".py":
        raise ValueError(f"a config is a Python file: {path} must end in .py")
    if path.exists():
        raise ValueError(f"{path} exists already; name another file, so that nothing is overwritten")
    backbone = {}
    if file.network:
        from visionattn.engine import load_config

        backbone = load_config(name).model.backbone.to_dict()
    text = copy_text(file, backbone)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"{path}; to train by it: visionattn train {path}")
