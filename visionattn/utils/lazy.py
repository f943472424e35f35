"""Lazy imports of a package's public names."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

__all__ = ["import_name"]


def import_name(package: str, modules: Mapping[str, str], name: str) -> Any:
    """The value for a package's `__getattr__`.

    Args:
        package: Name of the package.
        modules: Public name -> the module of the package that defines it, whose own name must be another: a module
            that is imported takes its name's place in the package.
        name: The name that is asked for.

    Raises:
        AttributeError: If it is none of the public names.
    """
    if name not in modules:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    return getattr(import_module(f"{package}.{modules[name]}"), name)
