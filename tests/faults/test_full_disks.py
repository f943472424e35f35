"""Every command that writes meets a full disk: one line, status 2, nothing half-written, nothing overwritten."""

import errno
import multiprocessing
import os
import resource
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visionattn.cli import main

ROOT = Path(__file__).parents[2]
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["visionattn.cli", "visionattn.engine.runner"])
NAME = "va_resnet10n_cbam.digits"
LOOKING = "va_stm_swin_nano.digits"
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
    "explain": (["explain", "photos/ant/0.png", "--model", NAME, "--method", "gates", "--out", "maps"], "maps/*"),
    "explain --html": (["explain", "photos/ant/0.png", "--model", LOOKING, "--html", "page.html"], "page.html"),
    "explain --csv": (["explain", "photos", "--model", LOOKING, "--statistics", "--csv", "heads.csv"], "heads.csv"),
    "train": (["train", "quickstart", "--work-dir", "run"], "run/*.pth"),
}


def write_with_limit(arguments, size, place, output):
    """Runs a command whose files may not exceed so many bytes; what it prints goes to a pipe, which has no limit."""
    os.chdir(place)
    for number in (1, 2):
        os.dup2(output.fileno(), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    sys.argv = ["visionattn", *arguments]
    main()


def limited(arguments, size):
    """Runs a command under a limit in a process of its own; gives its status and what it printed.

    The process is forked from one that has run nothing: a fork of the tests' own process may not run a backward pass
    where an earlier test has run one.
    """
    reading, writing = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=write_with_limit, args=(arguments, size, Path.cwd(), writing))
    process.start()
    writing.close()
    with os.fdopen(os.dup(reading.fileno()), encoding="utf-8") as pipe:
        printed = pipe.read()
    process.join()
    return process.exitcode, printed


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


@pytest.mark.parametrize("command", ["browse", "cards", "explain --csv", "explain --html", "roofline", "test"])
def test_an_earlier_result_stays(command, place):
    """Of commands that write over it."""
    arguments, result = COMMANDS[command]
    (place / result).write_text("<!-- table -->\nfrom before")
    status, printed = limited(arguments, 20)
    assert status == 2 and (place / result).read_text() == "<!-- table -->\nfrom before", printed
