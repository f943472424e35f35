"""Evidence for a mechanism: recorded results that its tests use, and kernels that it reaches."""

import re
from importlib import import_module
from types import FunctionType
from typing import Any

from visionattn.catalog import Card, cards, module_of

from .fixtures import FOLDER

__all__ = ["fixtures_of", "golden_of", "has_kernels"]


def fixtures_of(card: Card) -> list[str]:
    """Names of the recorded results of the official code that a mechanism is compared with.

    Args:
        card: Its module names them in its docstring, after `Golden:`.
    """
    patterns = re.findall(r"[\w{},*[\]]+\.npz", golden_of(card))
    expanded = (name for pattern in patterns for name in _alternatives(pattern))
    return sorted({path.stem for pattern in expanded for path in FOLDER.glob(pattern)})


def has_kernels(card: Card) -> bool:
    """Whether an operation that a mechanism calls, itself or through another one, has Triton kernels."""
    if card.factory is None:
        parts = (other for other in cards(card.kind) if other.factory and module_of(other) is module_of(card))
        return any(map(has_kernels, parts))
    seen: set[Any] = set()
    cls = getattr(card.factory, "func", card.factory)
    bases = cls.__mro__ if isinstance(cls, type) else ()
    names = {module_of(card).__name__, *(base.__module__ for base in bases)}
    modules = (import_module(name) for name in names if name.startswith("visionattn."))
    return any(_reaches_kernel(value, seen) for module in modules for value in vars(module).values())


def golden_of(card: Card) -> str:
    """The statement on recorded results in the docstring of a mechanism's module."""
    found = re.search(r"^Golden: (.*)", module_of(card).__doc__ or "", re.MULTILINE | re.DOTALL)
    return " ".join(found[1].split()) if found else ""


def _alternatives(pattern: str) -> list[str]:
    """The patterns that one with a choice `{a,b}` stands for."""
    found = re.fullmatch(r"(.*)\{(.*)\}(.*)", pattern)
    return [f"{found[1]}{choice}{found[3]}" for choice in found[2].split(",")] if found else [pattern]


def _reaches_kernel(value: Any, seen: set[Any]) -> bool:
    """Whether a function of `visionattn.ops` has kernels or names one there that has; `seen` were looked at before."""
    if hasattr(value, "refuses"):
        return True
    if not isinstance(value, FunctionType) or not value.__module__.startswith("visionattn.ops") or value in seen:
        return False
    seen.add(value)
    return any(_reaches_kernel(value.__globals__.get(name), seen) for name in value.__code__.co_names)
