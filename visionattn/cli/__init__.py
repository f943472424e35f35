"""The command line, `visionattn ...` or `python -m visionattn.cli ...`: one file a command.

Every module of this folder whose name does not begin with an underscore is a command; `prepare_objects.py` is
`visionattn prepare-objects`. It has

- `SUMMARY`: what it does, in a sentence without its full stop,
- `EXAMPLES`: arguments that work as they are printed,
- `add_arguments(parser)`: declares its arguments,
- `run(options)`: does it,
- `NEEDS_NETWORKS = False` if it needs no network, and so no torch.

Nothing heavy is imported at the top of these modules: help needs no torch. Errors that a user can do something about
end in one line and the exit status 2, Ctrl-C in 130; `--debug` shows where they came from.
"""

import argparse
import importlib
import os
import pkgutil
import sys
import textwrap
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NoReturn

import visionattn

from ._errors import explain as explain_error

__all__ = ["main"]

_EPILOG = """\
`visionattn train quickstart` is a good start: it needs no data and takes a minute.

On CPUs threads wait without spinning (OMP_WAIT_POLICY=PASSIVE), so that several programs can share a machine, and
training a small classifier uses one thread, with which it is fastest. The environment variables OMP_WAIT_POLICY and
OMP_NUM_THREADS take precedence.
"""


def main(command: str | None = None) -> None:
    """Runs a command with the arguments of the process.

    Args:
        command: Name of the command; taken from the arguments without it.
    """
    arguments = sys.argv[1:] if command is None else [command, *sys.argv[1:]]
    options = _parser(arguments).parse_args(arguments)
    stream: Any
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal cannot show must not end the command
        if getattr(stream, "errors", "") in ("strict", "surrogateescape"):  # the second in the C locale
            stream.reconfigure(errors="backslashreplace")
    # Read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        if getattr(options.command, "NEEDS_NETWORKS", True) and "visionattn.models" not in sys.modules:
            importlib.reload(visionattn)
        options.command.run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has left, as in `visionattn configs | head -1`: leave like any tool, without a word.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + 13)
    except KeyboardInterrupt as stopped:
        if options.debug:
            raise
        _fail(f"stopped{f'; {stopped}' if str(stopped) else ''}", 130)
    except Exception as error:
        message = None if options.debug else explain_error(error, options)
        if message is None:
            raise
        _fail(f"error: {message}", 2)


def _fail(message: str, status: int) -> NoReturn:
    if sys.stdout.isatty():
        sys.stdout.write("\x1b[?25h")  # a progress bar that was cut off has hidden the cursor
    print(f"visionattn: {message}", file=sys.stderr)
    sys.exit(status)


def _commands(arguments: Sequence[str] = ()) -> dict[str, ModuleType]:
    """The command that the arguments name, or else all commands."""
    names = [module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")]
    commands = {name.replace("_", "-"): name for name in names}
    chosen = arguments[:1] if arguments and arguments[0] in commands else commands
    return {name: importlib.import_module(f"{__name__}.{commands[name]}") for name in chosen}


def _parser(arguments: Sequence[str] = ()) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="visionattn",
        description="Train, evaluate and use networks with visual attention.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"visionattn {visionattn.__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="command", title="commands")
    for name, command in _commands(arguments).items():
        examples = "\n".join(f"  visionattn {name} {example}".rstrip() for example in command.EXAMPLES)
        subparser = subparsers.add_parser(
            name,
            help=command.SUMMARY,
            description=textwrap.fill(f"{command.SUMMARY[0].upper()}{command.SUMMARY[1:]}.", 100),
            epilog=f"examples:\n{examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        subparser.add_argument("--debug", action="store_true", help="show the traceback of an error")
        command.add_arguments(subparser)
        subparser.set_defaults(command=command)
    return parser
