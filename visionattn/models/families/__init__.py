"""The papers' networks as tables over the hosts. Every `va_*.py` here is imported and registers its networks."""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
