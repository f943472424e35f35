"""Which tests are the nearest to a module of the package: by name, by what they import, by the names they use."""

import ast
import functools
import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Suite", "nearest"]

# Tests over every mechanism: only those of so many that are the module or use it.
_TABLES = ("tests/contracts/test_mechanisms.py",)
_CARDS = ("tests/contracts/test_mechanism_cards.py", "tests/testing/test_generated.py")
_MECHANISMS = ("plugins", "mixers")
_ROWS = 2
# Minutes over everything: networks, printed commands, the way from data to predictions.
_SLOWEST = (
    "tests/models/test_contracts.py",
    "tests/test_packing.py",
    "tests/test_printed_commands.py",
    "tests/cli/test_whole_road.py",
    "tests/ops/kernels/",
    "tests/faults/",
)


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
    points: dict[str, float] = {}
    direct = users(root).get(dotted(path), [])
    further = [user for module in direct for user in users(root).get(dotted(module), ())]
    above = [(path, 1.0), *((user, 0.3) for user in direct), *((user, 0.1) for user in further)]
    for module, weight in above:
        for file, score in scores(module, root).items():
            points[file] = max(points.get(file, 0), weight * score)
    ranked = sorted((file for file in points if points[file] > 0), key=lambda file: (-points[file], file))[:count]
    rows = [Path(module).stem for module in (path, *direct, *further) if Path(module).parts[1] in _MECHANISMS]
    rows = list(dict.fromkeys(row for row in rows if row[0] != "_"))[:_ROWS]
    tables = [Suite(file, " or ".join(rows)) for file in _TABLES if rows]
    cards = [Suite(file) for file in _CARDS if Path(path).parts[1] in _MECHANISMS and Path(path).name[0] != "_"]
    return [*(Suite(file) for file in ranked), *tables, *cards]


def dotted(path: str) -> str:
    """A module's path as imports name it."""
    return ".".join(Path(path).with_suffix("").parts)


def scores(path: str, root: Path) -> dict[str, float]:
    """How near each file of tests is to a module."""
    parts = dotted(path).split(".")
    stem, room = parts[-1].strip("_"), parts[1]
    defined = public_names(root / path)
    found = {}
    for file, (text, imported) in tests(root).items():
        points = 0.0
        if re.search(rf"(^|_){stem}(_|$)", Path(file).stem.removeprefix("test_")):
            points += 10
        if dotted(path) in imported:
            points += 6
        if room == "cli":  # a command is called by its name
            calls = len(re.findall(rf"""["']{stem.replace("_", "-")}["']""", text))
            points += (6 if calls else 0) + min(calls, 10) / 2
        names = [name for name in defined if name in imported or re.search(rf"\b{name}\b", text)]
        points += 3 * min(len(names), 3)
        if Path(file).parts[1] == room and (points or re.search(rf"\b{stem}s?\b", text)):
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
