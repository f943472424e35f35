"""Token mixers for vision transformers, `(B, H, W, C) -> (B, H, W, C)`, any H, W: one paper a file.

Every mixer takes its width first and everything else by name. `Tokens` makes one that takes tokens `(B, N, C)`.
"""

from typing import Any

from visionattn.utils.exports import find_export, list_exports

from ._resolve import list_mixers as list_mixers
from ._resolve import resolve_mixer as resolve_mixer
from ._tokens import Tokens as Tokens


def __getattr__(name: str) -> Any:
    """The mixers, each imported from the module of its paper, and `__all__`."""
    return __dir__() if name == "__all__" else find_export(__name__, name)


def __dir__() -> list[str]:
    return sorted({"Tokens", "list_mixers", "resolve_mixer", *list_exports(__name__)})
