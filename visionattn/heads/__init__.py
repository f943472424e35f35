"""Heads on features: pooling, fusion and decoders, one paper a file."""

from typing import Any

from visionattn.utils.exports import find_export, list_exports


def __getattr__(name: str) -> Any:
    """The heads, each imported from the module of its paper, and `__all__`."""
    return __dir__() if name == "__all__" else find_export(__name__, name)


def __dir__() -> list[str]:
    return list_exports(__name__)
