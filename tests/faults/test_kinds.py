"""The table of faults names tests that are there; the figures in the docs are those that were recorded."""

import ast
import json
import re
from pathlib import Path

import pytest
from faults.kinds import KINDS, kind_of

TESTS = Path(__file__).parents[1]
ENTRIES = [entry for entries in KINDS.values() for entry in entries]


def names(path):
    """The names of classes and functions of a file, as node ids have them."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield f"::{node.name}"
            for method in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(method, ast.FunctionDef):
                    yield f"::{node.name}::{method.name}"


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_entry_is_a_test(entry):
    file, _, rest = entry.partition("::")
    assert (TESTS / file).is_file()
    if rest:
        function, _, case = rest.partition("[")
        found = [name for name in names(TESTS / file) if name.startswith(f"::{function}")]
        assert any("::test_" in name for name in found)
        assert not case or case.rstrip("]") in (TESTS / file).read_text(encoding="utf-8")


def test_no_test_is_counted_twice():
    assert len(set(ENTRIES)) == len(ENTRIES)
    assert kind_of("tests/engine/test_guard.py::test_ends_clean_and_says_how_to_resume[term]") == "signals"
    assert kind_of("tests/engine/test_guard.py::test_ends_clean_and_says_how_to_resume[term in write]") == "signals"
    assert kind_of("tests/engine/test_guard.py::test_a_file_system_without_locks") is None


def test_the_figures_of_the_docs_are_the_recorded_ones():
    docs = TESTS.parent / "docs"
    recorded = json.loads((docs / "results" / "faults.json").read_text())
    page = (docs / "promises.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\w ]+) \| ([\d,]+) \| ([\d,]+) \|$", page, re.MULTILINE)
    shown = {kind: {"tests": _number(tests), "faults": _number(faults)} for kind, faults, tests in rows}
    assert shown == recorded and set(recorded) == set(KINDS)


def _number(text):
    return int(text.replace(",", ""))
