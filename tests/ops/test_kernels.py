"""The tests of the kernels in Triton's interpreter: a process for each module, for Triton reads its switch once."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
from packaging.version import Version

triton = pytest.importorskip("triton", reason="without Triton there are no kernels")
FOLDER = Path(__file__).parent / "kernels"
TESTS = FOLDER.parents[1]


@pytest.mark.skipif(
    Version(triton.__version__) < Version("3.7") and Version(numpy.__version__) >= Version("2.4"),
    reason="the interpreter of Triton before 3.7 needs NumPy before 2.4",
)
@pytest.mark.parametrize("module", sorted(path.name for path in FOLDER.glob("test_*.py")))
def test_interpreted(module):
    paths = [str(TESTS.parent), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }
    command = ["pytest", "-q", "-p", "no:xdist", "-o", "addopts=-m 'not slow'", "--show-capture=no"]
    done = subprocess.run(
        [sys.executable, "-m", *command, str(FOLDER / module)],
        env=environment,
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    passed = re.search(r"(\d+) passed", output)
    assert passed and int(passed[1]) > 0, output
