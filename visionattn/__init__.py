"""Visual attention for timm: plug-in blocks for CNNs, token mixers for vision transformers, and their networks.

`import visionattn` registers every `va_*` network with timm, so that `timm.create_model('va_resnet50_cbam')` works.
Training and evaluation live in `visionattn.engine` and need to be imported on their own.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .utils.startup import is_command_line_starting
from .version import __version__

__all__ = [
    "__version__",
    "attach",
    "catalog",
    "checkpoints",
    "explain",
    "heads",
    "inference",
    "list_mixers",
    "list_plugins",
    "mixers",
    "models",
    "plugins",
    "replace_attention",
]

# `visionattn --help` needs no torch: the command line executes this file again when a command is about to run.
if not is_command_line_starting():
    from . import catalog, mixers, models, plugins
    from .mixers import list_mixers, replace_attention
    from .plugins import attach, list_plugins

if TYPE_CHECKING:
    from . import checkpoints, explain, heads, inference

_LAZY = ("checkpoints", "explain", "heads", "inference")


def __getattr__(name: str) -> Any:
    """Imports `visionattn.checkpoints`, `.explain`, `.heads` and `.inference` on first access."""
    if name in _LAZY:
        return import_module(f"visionattn.{name}")
    raise AttributeError(f"module 'visionattn' has no attribute {name!r}")
