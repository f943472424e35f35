"""Finding a mixer by name, class or config."""

from collections.abc import Callable
from typing import Any

from torch import nn

from visionattn import catalog

__all__ = ["list_mixers", "resolve_mixer"]


def list_mixers() -> list[str]:
    """Names of all standalone mixers."""
    return [card.name for card in catalog.cards("mixer") if card.standalone]


def resolve_mixer(mixer: str | dict[str, Any] | Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """The constructor for a mixer's name, config or class; call it with the width.

    Args:
        mixer: A name of `list_mixers()`, a class, or a dict with `type` (either of these) and further arguments.

    Raises:
        ValueError: If the name is unknown, or of several mixers that take turns.
        TypeError: If a dict has no `type`, or `mixer` is neither of the three.
    """
    return catalog.resolve("mixer", mixer)
