"""Where the files that travel with the package lie: configs, tools and the small checkpoints.

In a checkout (also an editable install) they stand beside the package; in an installed wheel they stand inside it.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["checkpoint_dir", "config_dir", "read_manifest"]

_PACKAGE = Path(__file__).resolve().parents[1]
_ROOT = _PACKAGE / "_share" if (_PACKAGE / "_share").is_dir() else _PACKAGE.parent


def config_dir() -> Path:
    """The folder of the packaged configs."""
    return _ROOT / "configs"


def checkpoint_dir() -> Path:
    """The folder of the packaged checkpoints and their manifest."""
    return _ROOT / "checkpoints"


@cache
def read_manifest() -> dict[str, dict[str, Any]]:
    """The packaged manifest: `{'<model>.<tag>': entry}`; empty where no manifest was installed."""
    path = checkpoint_dir() / "manifest.json"
    return json.loads(path.read_text())["checkpoints"] if path.is_file() else {}
