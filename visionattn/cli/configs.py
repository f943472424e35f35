"""`visionattn configs`."""

import argparse

SUMMARY = "list the packaged configs"
EXAMPLES = ("",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""


def run(options: argparse.Namespace) -> None:
    """Lists the packaged configs."""
    from visionattn.engine import list_configs

    print("\n".join(list_configs()))
