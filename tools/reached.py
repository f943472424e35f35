"""Which lines of some files each test runs, and in how many seconds: a plugin for `pytest.main`.

Lines that a fixture of a whole module or session runs count for every test. What other processes run is not seen.
"""

import ast
import json
import sys
import threading
import time
from pathlib import Path

import pytest

__all__ = ["Reached", "span"]


class Reached:
    """Follows tests while they run.

    Args:
        root: Of the tree.
        paths: Of the files to follow, relative to it.
        record: Written test by test, so that what is stopped leaves what it has seen.
    """

    def __init__(self, root: Path, paths: set[str], record: Path) -> None:
        self.paths = {str(root / path): path for path in paths}
        self.record = record
        self._shared: set[tuple[str, int]] = set()
        self._lines: set[tuple[str, int]] = set()
        self._passed = True

    def _call(self, frame, event, arg):
        return self._line(frame, event, arg) if frame.f_code.co_filename in self.paths else None

    def _line(self, frame, event, arg):
        self._lines.add((self.paths[frame.f_code.co_filename], frame.f_lineno))
        return self._line

    def read(self) -> tuple[dict[str, tuple[bool, float, set[tuple[str, int]]]], set[tuple[str, int]]]:
        """Of each test by its id whether it passed, its seconds and the (path, line) that it ran; what all share."""
        tests, shared = {}, set()
        for line in self.record.read_text().splitlines() if self.record.exists() else ():
            test, passed, seconds, own, common = json.loads(line)
            tests[test] = passed, seconds, set(map(tuple, own))
            shared |= set(map(tuple, common))
        return tests, shared

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        self._lines, self._passed, begun = set(), True, time.monotonic()
        threading.settrace(self._call)
        sys.settrace(self._call)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            threading.settrace(None)
            seen = item.nodeid, self._passed, time.monotonic() - begun, sorted(self._lines), sorted(self._shared)
            with self.record.open("a") as file:
                file.write(json.dumps(seen) + "\n")

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef):
        own = self._lines
        if fixturedef.scope != "function":
            self._lines = self._shared
        try:
            return (yield)
        finally:
            self._lines = own

    def pytest_runtest_logreport(self, report):
        self._passed &= not report.failed


def span(source: str, start: int) -> range | None:
    """The lines of which one must run for a change to matter: of the innermost statement, of a function for a default.

    Args:
        source: Text of a file.
        start: Number of the first character that changes.

    Returns:
        Numbers of lines, from 1; none for what runs when the module is imported.
    """
    line = source.count("\n", 0, start) + 1
    found, within = None, False
    body = ast.parse(source).body
    while around := next((node for node in body if _first(node) <= line <= node.end_lineno), None):
        inner = [child for child in ast.walk(around) if isinstance(child, ast.stmt) and child is not around]
        head = min((_first(child) for child in inner), default=around.end_lineno + 1)
        if isinstance(around, ast.FunctionDef):
            if line < head:
                return range(head, around.end_lineno + 1)
            within = True
        if within:
            found = range(around.lineno, max(head, around.lineno + 1))
        body = inner if line >= head else []
    return found


def _first(node: ast.stmt) -> int:
    decorators = getattr(node, "decorator_list", [])
    return min([node.lineno, *(one.lineno for one in decorators)])
