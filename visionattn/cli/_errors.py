"""Errors that a user can act on, as one line."""

import argparse
import errno
import os
import re
import sys
import traceback
from pathlib import Path

__all__ = ["explain"]

_CURES = {
    errno.EACCES: "name another place, or change its permissions",
    errno.EPERM: "name another place, or change its permissions",
    errno.EROFS: "it is on a read-only file system: name another place",
    errno.ENOTDIR: "a file stands where a folder is needed: name another place",
    errno.EEXIST: "something of this name is in the way: name another place",
    errno.EISDIR: "it is a folder: name a file",
    errno.ENOSPC: "the disk is full: make room, then run this again",
    errno.EDQUOT: "your quota is used up: make room, then run this again",
    errno.EFBIG: "the file would exceed what the system allows",
    errno.EMFILE: "too many files are open: use fewer workers (num_workers) or raise `ulimit -n`",
}
# Distributions whose modules have another name.
_DISTRIBUTIONS = {
    "PIL": "pillow",
    "cv2": "opencv-python-headless",
    "mmengine": "mmengine-lite",
    "pytorch_grad_cam": "grad-cam",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
}


def explain(error: Exception, options: argparse.Namespace) -> str | None:
    """The message of an error for the user.

    Args:
        error: What a command raised.
        options: Those of the command; `options.loaded`, if it is there, is the config that it uses.

    Returns:
        One line; None if this looks like a fault in the package, which needs its traceback.
    """
    if isinstance(error, ImportError):
        return _missing_package(error)
    if isinstance(error, OSError) and error.errno and (error.filename or error.errno in _CURES):
        parts = [error.filename and os.fspath(error.filename), os.strerror(error.errno)]
        cure = _CURES.get(error.errno)
        return ": ".join(str(part) for part in parts if part) + (f"; {cure}" if cure else "")
    if isinstance(error, ValueError | OSError):
        return _message(error)
    if type(error).__name__ == "OutOfMemoryError":
        return f"{_message(error).partition('. ')[0]}; use a smaller batch (train_dataloader.batch_size) or --amp"
    if isinstance(error, RuntimeError) and "DataLoader worker" in str(error) and "exited unexpectedly" in str(error):
        return f"{_message(error)}; out of memory? Use fewer workers (train_dataloader.num_workers) or smaller pictures"
    if (config := getattr(options, "loaded", None)) is not None and "mmengine" in sys.modules:
        from visionattn.engine.config_errors import explain_build_error

        return explain_build_error(error, config)
    return None


def _message(error: Exception) -> str:
    """The text of an error in one line; of a worker process's traceback, the last line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if "Original Traceback" in str(error):
        return re.sub(r"^[\w.]+(Error|Exception): ", "", lines[-1])
    return " ".join(lines) or type(error).__name__


def _missing_package(error: ImportError) -> str | None:
    """How to install a missing package, if it is an optional dependency."""
    from importlib.metadata import PackageNotFoundError, requires

    module = (error.name or "").partition(".")[0]
    distribution = _DISTRIBUTIONS.get(module, module.replace("_", "-"))
    try:
        declared = [text for text in requires("visionattn") or [] if re.match(rf"{re.escape(distribution)}\b", text)]
    except PackageNotFoundError:
        declared = []
    if not module or not declared:
        inside = traceback.extract_tb(error.__traceback__)
        ours = inside and Path(__file__).parents[1] in Path(inside[-1].filename).parents
        return None if ours else f"cannot import {module or 'a module'}: {error}"
    extras = [found[1] for text in declared if (found := re.search(r"extra == ['\"]([\w-]+)", text))]
    # The one that is for it, not one that takes everything.
    extra = next((name for name in extras if name not in ("all", "test")), extras[0] if extras else None)
    what = f"'visionattn[{extra}]'" if extra else f"'{distribution}'"
    return f"this needs {module}, which is not installed: pip install {what}"
