"""Tells how this process was started."""

import sys
from pathlib import Path

__all__ = ["is_command_line_starting"]


def is_command_line_starting() -> bool:
    """Whether this process is about to run `visionattn ...` or `python -m visionattn.cli ...`.

    While Python imports the packages above the module that it was asked to run, `sys.argv[0]` is `-m`. Worker processes
    inherit `sys.argv` from their parent, but have an original command line of their own.
    """
    program = sys.argv[0] if sys.argv else ""
    if "visionattn.cli" in sys.modules or program not in sys.orig_argv:
        return False
    return "visionattn.cli" in sys.orig_argv if program == "-m" else Path(program).stem == "visionattn"
