"""Which tests are the nearest to a module of the package: by name, by what they import, by the names they use."""

import ast
import functools
import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Suite", "nearest"]

# Tests over every mechanism or network: only what bears the name of the module's folder or file.
_TABLES = {"tests/contracts/test_mechanisms.py": ("plugins", "mixers")}
_SLOWEST = ("tests/models/test_contracts.py", "tests/test_packing.py", "tests/ops/kernels/", "tests/faults/")


@dataclass(frozen=True)
class Suite:
    """A file of tests, and which of them."""

    file: str
    only: str = ""

    @property
    def name(self) -> str:
        return f"{self.file} -k {self.only}" if self.only else self.file

    @property
    def arguments(self) -> list[str]:
        return [self.file, *(["-k", self.only] if self.only else [])]


def nearest(path: str, root: Path, count: int) -> list[Suite]:
    """The files of tests to run for a module, nearest first.

    Args:
        path: Of the module, relative to the root.
        root: Of the tree.
        count: How many at most.
    """
    parts = Path(path).with_suffix("").parts
    points: dict[str, float] = {}
    above = [(path, 1.0), *((user, 0.3) for user in users(root).get(".".join(parts), ()))]
    for module, weight in above:
        for file, score in scores(module, root).items():
            points[file] = max(points.get(file, 0), weight * score)
    ranked = sorted((file for file in points if points[file] > 0), key=lambda file: (-points[file], file))[:count]
    tables = [Suite(file, parts[2]) for file, rooms in _TABLES.items() if parts[1] in rooms and parts[2][0] != "_"]
    return [*(Suite(file) for file in ranked), *tables]


def scores(path: str, root: Path) -> dict[str, float]:
    """How near each file of tests is to a module."""
    parts = Path(path).with_suffix("").parts
    stem, room = parts[-1].strip("_"), parts[1]
    defined = public_names(root / path)
    found = {}
    for file, (text, imported) in tests(root).items():
        points = 0.0
        if re.search(rf"(^|_){stem}(_|$)", Path(file).stem.removeprefix("test_")):
            points += 10
        if ".".join(parts) in imported:
            points += 6
        if room == "cli":  # a command is called by its name
            calls = len(re.findall(rf"""["']{stem.replace("_", "-")}["']""", text))
            points += (6 if calls else 0) + min(calls, 10) / 2
        names = [name for name in defined if name in imported or re.search(rf"\b{name}\b", text)]
        points += 3 * min(len(names), 3)
        if points and Path(file).parts[1] == room:
            points += 4
        if points:
            found[file] = points
    return found


@functools.cache
def tests(root: Path) -> dict[str, tuple[str, frozenset[str]]]:
    """Text and imports of all files of tests."""
    found = {}
    for file in sorted((root / "tests").rglob("test_*.py")):
        name = file.relative_to(root).as_posix()
        if name not in _TABLES and not name.startswith(_SLOWEST):
            text = file.read_text(encoding="utf-8")
            found[name] = text, frozenset(imports(ast.parse(text), ""))
    return found


def public_names(file: Path) -> list[str]:
    """What a module defines for others."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    return [
        node.name
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, kinds) and not node.name.startswith("_") and len(node.name) > 4
    ]


@functools.cache
def users(root: Path) -> dict[str, list[str]]:
    """The modules (paths) that import each module (dotted)."""
    found: dict[str, list[str]] = {}
    for file in sorted((root / "visionattn").rglob("*.py")):
        path = file.relative_to(root)
        package = ".".join(path.parent.parts)
        for name in imports(ast.parse(file.read_text(encoding="utf-8")), package):
            if file.name != "__init__.py":
                found.setdefault(name, []).append(path.as_posix())
    return found


def imports(tree: ast.AST, package: str) -> set[str]:
    """Modules that are imported, absolute, and the names taken from them."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names), *(a.name for a in node.names)}
    return found
