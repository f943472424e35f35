"""Locations of packaged configs and small checkpoints, and of the user's own checkpoints.

In a checkout (also an editable install) the package's stand beside it; in an installed wheel they stand inside it.
"""

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["USER_FOLDER", "checkpoint_dir", "config_dir", "read_manifest", "user_folder"]

USER_FOLDER = "VISIONATTN_CHECKPOINTS"

_PACKAGE = Path(__file__).resolve().parents[1]
_ROOT = _PACKAGE / "_share" if (_PACKAGE / "_share").is_dir() else _PACKAGE.parent


def config_dir() -> Path:
    """The folder of the packaged configs."""
    return _ROOT / "configs"


def checkpoint_dir() -> Path:
    """The folder of the packaged checkpoints and their manifest."""
    return _ROOT / "checkpoints"


def user_folder() -> Path | None:
    """The folder that the environment variable VISIONATTN_CHECKPOINTS names now; none if it is not set.

    Raises:
        ValueError: If there is no such folder.
    """
    if not (named := os.environ.get(USER_FOLDER)):
        return None
    folder = Path(named).expanduser()
    if not folder.is_dir():
        raise ValueError(f"{USER_FOLDER} names {named}, which is not a folder")
    return folder


@cache
def read_manifest() -> dict[str, dict[str, Any]]:
    """The packaged manifest: `{'<model>.<tag>': entry}`; empty where no manifest was installed."""
    path = checkpoint_dir() / "manifest.json"
    return json.loads(path.read_bytes())["checkpoints"] if path.is_file() else {}
