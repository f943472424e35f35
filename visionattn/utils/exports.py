"""The public names of a package, collected from its modules, so that new modules need no registration."""

from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

__all__ = ["find_export", "list_exports", "public_modules"]


def public_modules(package: str) -> Iterator[ModuleType]:
    """Imports the modules of a package whose names begin with a letter, in order."""
    for module in iter_modules(import_module(package).__path__):
        if not module.name.startswith("_"):
            yield import_module(f"{package}.{module.name}")


def list_exports(package: str) -> list[str]:
    """What the modules of a package offer, by name: the value of its `__all__`."""
    return sorted(_exports(package))


def find_export(package: str, name: str) -> Any:
    """A public name of one of the modules of a package: the value of its `__getattr__`.

    Raises:
        AttributeError: If no module has it.
    """
    if name.startswith("_") or name not in _exports(package):
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    return _exports(package)[name]


@cache
def _exports(package: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for module in public_modules(package):
        for name in module.__all__:
            if name in found:
                raise ImportError(f"{name} is in two modules of {package}; the second is {module.__name__}")
            found[name] = getattr(module, name)
    return found
