"""The command line, `visionattn ...` or `python -m visionattn.cli ...`: one file a command.

Every module of this folder whose name does not begin with an underscore is a command; `prepare_objects.py` is
`visionattn prepare-objects`. It has

- `SUMMARY`: what it does, in a sentence without its full stop,
- `EXAMPLES`: arguments that work as they are printed,
- `add_arguments(parser)`: declares its arguments,
- `run(options)`: does it.

Nothing heavy is imported at the top of these modules: help needs no torch.
"""

import argparse
import importlib
import pkgutil
import sys

import visionattn

__all__ = ["main"]


def main(command: str | None = None) -> None:
    """Runs a command with the arguments of the process.

    Args:
        command: Name of the command; taken from the arguments without it.
    """
    options = _parser().parse_args(sys.argv[1:] if command is None else [command, *sys.argv[1:]])
    try:
        if "visionattn.models" not in sys.modules:
            importlib.reload(visionattn)
        options.run(options)
    except (OSError, ValueError) as error:
        if options.debug:
            raise
        # Errors of worker processes carry their whole traceback; its last line is the message.
        lines = [line for line in str(error).splitlines() if line.strip()]
        print(
            f"visionattn: error: {lines[-1] if 'Original Traceback' in str(error) else ' '.join(lines)}",
            file=sys.stderr,
        )
        sys.exit(2)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="visionattn",
        description="Train, evaluate and use networks with visual attention.",
        epilog="`visionattn train quickstart` is a good start: it needs no data and takes a minute.",
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    for module in pkgutil.iter_modules(__path__):
        if module.name.startswith("_"):
            continue
        command = importlib.import_module(f"{__name__}.{module.name}")
        name = module.name.replace("_", "-")
        examples = "\n".join(f"  visionattn {name} {example}".rstrip() for example in command.EXAMPLES)
        subparser = commands.add_parser(
            name,
            help=command.SUMMARY,
            description=f"{command.SUMMARY[0].upper()}{command.SUMMARY[1:]}.",
            epilog=f"examples:\n{examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        subparser.add_argument("--debug", action="store_true", help="show the traceback of an error")
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run)
    return parser
