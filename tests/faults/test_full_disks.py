"""Every command that writes meets a full disk: one line, status 2, nothing half-written, nothing overwritten."""

import errno
import os
import resource
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visionattn.cli import main

ROOT = Path(__file__).parents[2]
NAME = "va_resnet10n_cbam.digits"
# Arguments, and what must not be there (or must be as it was) afterwards.
COMMANDS = {
    "browse": (["browse", "quickstart", "--count", "1", "--out", "b.png"], "b.png"),
    "configs": (["configs", "--copy", "quickstart", "c.py"], "c.py"),
    "init": (["init", "--data", "photos", "--model", "va_resnet10n_cbam", "--out", "mine.py"], "mine.py"),
    "convert": (["convert", "w.safetensors", "--to", "va_resnet10n_cbam", "--out", "out"], "out/*"),
    "predict": (["predict", "photos", "--model", NAME, "--out", "seen"], "seen/*.png"),
    "test": (["test", "quickstart", NAME, "--work-dir", "t", "--out", "m.json"], "m.json"),
    "roofline": (["roofline", "cbam", "--batch", "1", "--out", "t.md"], "t.md"),
    "cards": (["cards", "--manifest", str(ROOT / "checkpoints" / "manifest.json"), "--out", "cards.md"], "cards.md"),
    "train": (["train", "quickstart", "--work-dir", "run"], "run/*.pth"),
}


def limited(arguments, size):
    """Runs a command in a fork whose files may not exceed so many bytes; gives its status and what it printed."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        status = 1
        try:
            os.close(reading)
            os.dup2(writing, 1)
            os.dup2(writing, 2)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
            sys.argv = ["visionattn", *arguments]
            main()
            status = 0
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 0
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    os.close(writing)
    with open(reading, encoding="utf-8") as pipe:
        printed = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), printed


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Pictures in two classes, and a file of weights."""
    import shutil

    from visionattn.checkpoints import packaged_path

    monkeypatch.chdir(tmp_path)
    for label in ("ant", "bee"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(4):
            pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / label / f"{number}.png")
    shutil.copy(packaged_path(NAME), tmp_path / "w.safetensors")
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_ends_in_one_line(command, place):
    arguments, result = COMMANDS[command]
    status, printed = limited(arguments, 20)
    lines = [line for line in printed.splitlines() if line.startswith("visionattn: error: ")]
    assert status == 2 and len(lines) == 1 and "Traceback" not in printed, printed
    assert os.strerror(errno.EFBIG) in lines[0] or "exceed" in lines[0], printed
    assert not [path for path in place.glob(result) if path.is_file()]
    assert not [path for path in Path(place).rglob("*") if ".part-" in path.name]


@pytest.mark.parametrize("command", ["browse", "cards", "roofline", "test"])
def test_an_earlier_result_stays(command, place):
    """Of commands that write over it."""
    arguments, result = COMMANDS[command]
    (place / result).write_text("<!-- table -->\nfrom before")
    status, printed = limited(arguments, 20)
    assert status == 2 and (place / result).read_text() == "<!-- table -->\nfrom before", printed
