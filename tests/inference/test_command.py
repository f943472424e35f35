"""`visionattn predict`: what it prints, what it refuses, and how little a classifier needs."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from visionattn.inference import ResultFolder, read_records

NAME = "va_resnet10n_cbam.digits"


def names(folder):
    return [Path(record["image"]).name for record in read_records(folder)]


def test_broken_pictures_are_named_and_counted(run_cli, folder, tmp_path):
    code, out, err = run_cli("predict", folder, "--model", NAME, "--out", "out", "--batch-size", "8")
    assert code == 0 and "3 predicted, 1 skipped (skipped.csv); everything is in out" in out
    assert "visionattn: skipped " in err and "broken.jpg: cannot read image" in err
    assert names(tmp_path / "out") == ["a.png", "photo [edited].png", "猫é.png"]
    code, _, err = run_cli("predict", folder, "--model", NAME, "--out", "strict", "--strict")
    assert code == 2 and "error: cannot read image" in err and names(tmp_path / "strict") == ["a.png"]


@pytest.mark.parametrize("name", ["photo [edited].png", "z[/b].png", "[bold red]x[/].png"])
def test_square_brackets_are_no_markup(name, run_cli, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / name)
    code, out, err = run_cli("predict", name, "--model", NAME)
    assert code == 0 and name in out, err


def test_runs_into_the_folder_of_the_pictures(run_cli, folder, tmp_path):
    for expected in ("predictions", "predictions-2"):
        code, out, _ = run_cli("predict", ".", "--model", NAME)
        assert code == 0 and f"everything is in {expected}," in out
        assert len(names(tmp_path / expected)) == 3


def test_standard_input_and_video(run_cli, tmp_path, monkeypatch, noise):
    content = io.BytesIO()
    Image.fromarray(noise(8, 8)).save(content, "png")
    content.seek(0)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=content))
    code, _, _ = run_cli("predict", "-", "--model", NAME, "--tables-only")
    assert code == 0 and names(tmp_path / "predictions") == ["standard input"]


def test_a_file_takes_the_place_of_the_published_weights(run_cli, folder):
    code, _, err = run_cli("predict", folder, "--model", NAME, "--checkpoint", "mine.pth")
    assert code == 2 and "error: no checkpoint at mine.pth" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "--model", NAME], "no file or folder nowhere"),
        ([".", "--model", NAME], "no images in ."),
        (
            ["a.png", "--model", NAME, "--score", "0.3"],
            "--score is for detection, but this network is for class",
        ),
        (
            ["a.png", "--model", "va_resnet10n_cbam.digit_scenes_fcos", "--topk", "2"],
            "--topk is for classification, but this network is for detection",
        ),
        (["a.png", "--model", NAME, "--cfg-options", "a=1"], "--cfg-options changes a config: it needs --config"),
        (["a.png", "--model", NAME, "--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["a.png", "--model", NAME, "--device", "gpu"], "--device must be cpu, cuda or cuda:NUMBER, got 'gpu'"),
        (["a.png", "--model", "va_resnet10n_cban"], "no network 'va_resnet10n_cban'; did you mean"),
    ],
)
def test_what_is_refused(run_cli, tmp_path, arguments, message):
    if arguments[0] == "a.png":
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    code, _, err = run_cli("predict", *arguments)
    assert code == 2 and err.count("\n") == 1 and f"visionattn: error: {message}" in err
    assert not (tmp_path / "predictions").exists()


def test_score_leaves_out_what_is_below_it(run_cli, scene, tmp_path):
    Image.fromarray(scene).save(tmp_path / "a.png")
    counts = []
    for score in ("0.1", "0.75"):
        code, _, _ = run_cli(
            "predict", "a.png", "--model", "va_resnet10n_cbam.digit_scenes_fcos", "--score", score, "--out", score
        )
        (record,) = read_records(tmp_path / score)
        assert code == 0 and all(found["score"] >= float(score) for found in record["objects"])
        counts.append(len(record["objects"]))
    assert counts[0] > counts[1] > 0


@pytest.mark.parametrize(
    ("number", "code", "how"), [(signal.SIGINT, 130, "stopped"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_run_that_is_stopped_says_what_is_finished(number, code, how, run_cli, folder, tmp_path, monkeypatch):
    add = ResultFolder.add

    def stop_at_the_second(self, prediction):
        if self.count == 1:
            os.kill(os.getpid(), number)
        add(self, prediction)

    monkeypatch.setattr(ResultFolder, "add", stop_at_the_second)
    found, _, err = run_cli("predict", folder, "--model", NAME, "--out", "out")
    assert found == code and f"visionattn: {how}; 1 pictures are finished in out" in err
    assert (tmp_path / "out" / "predictions.csv").read_text().count("\n") == 2


def test_a_full_disk_ends_in_one_line(run_cli, folder, monkeypatch):
    def fail(self, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    code, _, err = run_cli("predict", folder, "--model", NAME, "--out", "out")
    assert (
        code == 2 and err.count("\n") == 1 and "a.png: No space left on device; 0 pictures are finished in out" in err
    )


LIGHT = """
import json, sys
sys.argv = ["visionattn", *sys.argv[1:]]
from visionattn.cli import main
try:
    main()
finally:
    print(json.dumps(sorted(sys.modules)))
"""
HEAVY = (
    *("torchmetrics", "faster_coco_eval", "segmentation_models_pytorch", "sklearn", "skimage", "matplotlib"),
    *("tensorboard", "visionattn.tasks.detector", "visionattn.tasks.segmentor", "visionattn.engine.metrics"),
    *("visionattn.engine.runner", "visionattn.comparison", "visionattn.benchmark"),
)


@pytest.mark.parametrize("source", ["name", "config"])
def test_a_classifier_imports_no_other_task_and_no_metric(source, folder, tmp_path):
    """In a locale without UTF-8, where names with accents are printed and written all the same."""
    from visionattn.checkpoints import packaged_path

    where = ["--model", NAME] if source == "name" else ["--config", "quickstart", "--checkpoint", packaged_path(NAME)]
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, "predict", folder, *map(str, where), "--out", "out"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    imported = json.loads(done.stdout.splitlines()[-1])
    assert not set(HEAVY) & set(imported)
    assert names(tmp_path / "out") == ["a.png", "photo [edited].png", "猫é.png"]
    assert "猫é.png" in (tmp_path / "out" / "predictions.csv").read_text(encoding="utf-8")
