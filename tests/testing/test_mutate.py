"""The faults that `tools/mutate.py` plants, how it samples them, and which tests it runs against them."""

import argparse
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = '''"""A text."""

__all__ = ["f"]


def f(a: int = 3, *, b: bool = True) -> int:
    """Another."""
    if a < 2 and not b:
        raise ValueError(f"got {a + 1}")
    a += 4096
    g(a, key=b, help="x")
    return (a * 2, a, b)
'''


@pytest.fixture
def tool(monkeypatch):
    """Loads a module of tools/."""
    monkeypatch.setattr(sys, "path", [str(ROOT / "tools"), *sys.path])
    return importlib.import_module


def test_kinds_of_faults(tool):
    found = {(m.line, m.operator, m.before, m.after) for m in tool("mutants").mutants_of("a.py", SOURCE)}
    assert found == {
        (6, "constant", "3", "4"),
        (6, "constant", "True", "False"),
        (8, "boolean", "a < 2 and not b", "(a < 2 or not b)"),
        (8, "comparison", "a < 2", "(a <= 2)"),
        (8, "constant", "2", "3"),
        (8, "boolean", "not b", "b"),
        (9, "statement", 'raise ValueError(f"got {a + 1}")', "pass"),
        (10, "statement", "a += 4096", "pass"),
        (10, "constant", "4096", "8192"),
        (11, "statement", 'g(a, key=b, help="x")', "pass"),
        (11, "keyword", 'g(a, key=b, help="x")', "g(a, help='x')"),
        (12, "return", "return (a * 2, a, b)", "return None"),
        (12, "element", "(a * 2, a, b)", "(a, b)"),
        (12, "element", "(a * 2, a, b)", "(a * 2, b)"),
        (12, "element", "(a * 2, a, b)", "(a * 2, a)"),
        (12, "arithmetic", "a * 2", "(a / 2)"),
        (12, "constant", "2", "3"),
    }


def test_the_rest_of_a_file_stays(tool):
    for mutant in tool("mutants").mutants_of("a.py", SOURCE):
        changed = mutant.apply(SOURCE)
        compile(changed, "a.py", "exec")
        assert changed != SOURCE and changed.count("\n") == SOURCE.count("\n")


def test_faults_that_lived_once_can_be_planted(tool):
    """Where the code has moved, `PINNED` is to be adapted."""
    assert [mutant.path for mutant in tool("mutate").pinned()] == [path for path, *_ in tool("mutate").PINNED]


def test_samples_are_seeded(tool):
    mutate = tool("mutate")
    mutants = [
        mutant
        for path in ("visionattn/ops/losses.py", "visionattn/engine/lock.py")
        for mutant in tool("mutants").mutants_of(path, (ROOT / path).read_text())
    ]
    options = [argparse.Namespace(count=8, seed=seed, files=3) for seed in (0, 0, 1)]
    first, again, other = (mutate.sample(mutants, chosen, []) for chosen in options)
    assert first == again != other and len(first) == 8
    assert len({(mutant.path, mutant.line) for mutant in first}) == 8
    assert sum(mutant.path.startswith("visionattn/ops") for mutant in first) == 4


def test_a_fault_is_found_again_where_lines_have_moved(tool):
    mutant = tool("mutants").mutants_of("a.py", SOURCE)[2]
    fields = tool("mutate").entry(mutant)
    moved = tool("mutate").found_again(fields, f"x = 1\n{SOURCE}")
    assert moved.line == mutant.line + 1 and moved.apply(f"x = 1\n{SOURCE}") == f"x = 1\n{mutant.apply(SOURCE)}"
    assert tool("mutate").found_again(fields, "x = 1\n") is None


def test_what_changes_nothing_is_in_the_code(tool):
    """Where the code has moved, `EQUIVALENT` is to be adapted."""
    for (path, before, _), reason in tool("mutate").EQUIVALENT.items():
        assert before in (ROOT / path).read_text() and reason


def test_zips_may_lose_their_check_of_lengths(tool):
    found = tool("mutants").mutants_of("a.py", "zip(a, b, strict=True)\nf(a, strict=True)\n")
    assert [m.after for m in found if m.operator == "keyword"] == ["f(a)"]


LINES = """N = 1
class A:
    m = 2
    def f(self, a=3,
          b=4):
        if a > 5:
            return [
                6,
            ]
        return b
"""


@pytest.mark.parametrize(
    ("text", "lines"),
    [("1", None), ("2", None), ("3,", [6, 7, 8, 9, 10]), ("4)", [6, 7, 8, 9, 10]), ("5:", [6]), ("6,", [7, 8, 9])],
)
def test_lines_of_which_one_must_run(tool, text, lines):
    found = tool("reached").span(LINES, LINES.index(text))
    assert (found and [*found]) == lines


def test_lines_that_each_test_runs(tmp_path):
    """Fixtures of a whole module count for all; a test that fails is told apart."""
    (tmp_path / "code_of.py").write_text(
        "def f(x):\n    if x:\n        return 1\n    return 2\ndef g():\n    return 3\n"
    )
    (tmp_path / "test_it.py").write_text(
        "import code_of, pytest\n"
        "@pytest.fixture(scope='module', autouse=True)\n"
        "def shared(): code_of.g()\n"
        "def test_one(): assert code_of.f(1) == 1\n"
        "def test_two(): assert code_of.f(0) == 1\n"
    )
    script = (
        "import sys, pytest, json; from pathlib import Path; from reached import Reached\n"
        "follower = Reached(Path.cwd(), {'code_of.py'}, Path('record'))\n"
        "pytest.main(['-q', '-p', 'no:cacheprovider', 'test_it.py'], [follower])\n"
        "tests, shared = follower.read()\n"
        "seen = {t.split('::')[1]: (ok, sorted(n for _, n in lines)) for t, (ok, _, lines) in tests.items()}\n"
        "print('\\n' + json.dumps([seen, sorted(n for _, n in shared)]))\n"
    )
    path = f"{ROOT / 'tools'}{os.pathsep}{tmp_path}"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, capture_output=True
    )
    seen, shared = json.loads(done.stdout.splitlines()[-1])
    assert seen == {"test_one": [True, [1, 2, 3]], "test_two": [False, [1, 2, 4]]} and shared == [5, 6]


@pytest.mark.parametrize(
    ("module", "suite"),
    [
        ("ops/_dispatch.py", "tests/ops/test_dispatch.py"),
        ("engine/seeding.py", "tests/engine/test_units.py"),
        ("inference/folder.py", "tests/inference/test_folder.py"),
        ("cli/predict.py", "tests/inference/test_command.py"),
        ("plugins/bam.py", "tests/contracts/test_mechanisms.py -k bam"),
        ("plugins/bam.py", "tests/plugins/test_bam.py"),
        ("plugins/bam.py", "tests/testing/test_generated.py"),
        ("ops/gated_scan.py", "tests/contracts/test_mechanisms.py -k regla"),
        ("engine/checkpoint.py", "tests/engine/test_checkpoint_hook.py"),
        ("checkpoints/layout.py", "tests/checkpoints/test_layout.py"),
    ],
)
def test_nearest(tool, module, suite):
    assert suite in [found.name for found in tool("nearest_tests").nearest(f"visionattn/{module}", ROOT, 2)]
