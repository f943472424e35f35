"""Pages of the documentation site for the public names of the packages, which mkdocstrings fills from docstrings."""

from collections.abc import Iterator
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType

__all__ = ["api_pages"]


def api_pages() -> dict[str, str]:
    """Markdown of a page for each package with public names, for mkdocstrings to fill, by path in the site."""
    pages = {"api/visionattn.md": "# visionattn\n\n::: visionattn\n    options:\n      members: false\n"}
    pages["api/visionattn.md"] += "\n::: visionattn.catalog\n    options:\n      heading_level: 2\n"
    root = import_module("visionattn").__path__
    names = sorted(module.name for module in iter_modules(root) if module.ispkg and module.name not in ("cli", "utils"))
    for name in names:
        package = import_module(f"visionattn.{name}")
        parts = [f"# visionattn.{name}", "", f"::: {package.__name__}", "    options:", "      members: false"]
        parts += ["      show_root_heading: false", "      show_root_toc_entry: false"]
        for public in (*_from_private_modules(package), *_modules(package)):
            parts += ["", f"::: {public}", "    options:", "      heading_level: 2"]
        pages[f"api/{name}.md"] = "\n".join([*parts, ""])
    return pages


def _modules(package: ModuleType) -> Iterator[str]:
    for module in iter_modules(package.__path__, f"{package.__name__}."):
        if not module.name.rpartition(".")[2].startswith("_"):
            yield module.name


def _from_private_modules(package: ModuleType) -> list[str]:
    """Public names of a package that come out of modules whose names begin with an underscore."""
    found = []
    for name in getattr(package, "__all__", ()):
        home = getattr(getattr(package, name), "__module__", "")
        if home.startswith(f"{package.__name__}._"):
            # What a package finds only when it is asked for is not there to be read: it is documented where it stands.
            stands = (
                f"{package.__name__}.{name}" if name in vars(package) else f"{home}.{getattr(package, name).__name__}"
            )
            found.append(stands)
    return list(dict.fromkeys(found))
