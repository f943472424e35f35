"""What a user can do something about ends in one line that says what to do, and the exit status 2."""

import argparse
import errno
import os
import signal
import subprocess
import sys
import time

import pytest

from visionattn.cli._errors import explain
from visionattn.engine.config import load_config

COMMAND = [sys.executable, "-m", "visionattn.cli"]


def only_line(code, err):
    lines = err.strip().splitlines()
    assert code == 2 and len(lines) == 1 and lines[0].startswith("visionattn: error: "), err
    return lines[0]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("trian_cfg.x=2", "nothing reads trian_cfg.x; did you mean train_cfg"),
        (
            "train_pipeline.0.height=40",
            "would change nothing: train_pipeline is a variable of the config",
        ),
        ("train_pipeline.0.height=40", "set train_dataloader.dataset.pipeline.0.height instead"),
        ("optim_wrapper.optimizer.lrr=1", "(AdamW) has no setting 'lrr'; did you mean lr?"),
        ("optim_wrapper.optimizer.lr=0.001x", "must be a number (it is 0.004 in the config), got '0.001x'"),
        ("optim_wrapper.optimizer.type=Adamw", "there is no optimizer 'Adamw'; did you mean Adam"),
        ("train_cfg.max_epoch=2", "train_cfg has no setting 'max_epoch'; did you mean max_epochs"),
        ("train_cfg.max_epochs=2.5", "`max_epochs` should be a integer number, but get 2.5"),
        ("train_cfg.max_epochs.x=2", "train_cfg.max_epochs is 15 and has no settings"),
        ("model.backbone.num_class=3", "va_resnet10n_cbam has no setting 'num_class'; did you mean num_classes?"),
        ("model.lss.type=X", "Classifier has no setting 'lss'; did you mean loss?"),
        ("model.type=Classifer", "there is no model 'Classifer'; did you mean Classifier?"),
        ("train_dataloader.batchsize=4", "did you mean batch_size"),
        ("train_dataloader.dataset.splt=x", "(Digits) has no setting 'splt'; did you mean split?"),
        ("train_dataloader.dataset.type=ImageFoldr", "did you mean ImageFolder"),
        ("train_dataloader.dataset.pipeline.7.height=3", "is a list of 2, its elements are 0 to 1"),
        ("env_cfg.cudnn_benchmrk=True", "did you mean cudnn_benchmark?"),
        ("auto_scale_lr.enabl=True", "did you mean enable?"),
        ("randomness.sead=1", "did you mean seed?"),
        ("default_hooks.loger.interval=1", "there is no hook 'loger'; did you mean logger?"),
        ("default_hooks.logger.intervall=1", "did you mean interval"),
        ("param_scheduler.0.endd=3", "did you mean end?"),
        ("data_preprocessor.mena=1,2", "did you mean mean?"),
        ("custom_imports.import=a", "did you mean imports?"),
        ("custom_imports.imports=[nowhere_to_be_found]", "import nowhere_to_be_found"),
    ],
)
def test_misspelt_settings(run_cli, tmp_path, option, message):
    code, _, err = run_cli("train", "quickstart", "--cfg-options", option)
    assert message in only_line(code, err)
    assert not list(tmp_path.rglob("*.pth"))


MINE = b"_base_ = ['visionattn::quickstart']\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"_base_ = ['x.py'\n", "c.py, line 1: no valid Python: '[' was never closed"),
        (b"_base_ = ['x.py']\n", "c.py inherits from 'x.py', but there is no file"),
        (MINE + b"x = 1\ny = nothing\n", "c.py, line 3: NameError: name 'nothing' is not"),
        (b"_base_ = ['c.py']\n", "c.py inherits from itself"),
        (b"_base_ = 3\n", "line 1: _base_ must be a list of file names"),
        (
            MINE + b"param_scheduler = dict(x=1)\n",
            "param_scheduler is a dict, but what it inherits is a list; _delete_",
        ),
        (b"x = 1\n", "c.py says nothing about model, train_dataloader, train_cfg, optim_wrapper, which this needs"),
        (b"\xff\xfe", "c.py is not encoded in UTF-8"),
        (MINE + b"custom_imports = dict(imports=['nowhere_to_be_found'])\n", "import nowhere_to_be_found"),
    ],
)
def test_configs_that_cannot_be_read(run_cli, tmp_path, content, message):
    (tmp_path / "c.py").write_bytes(content)
    code, _, err = run_cli("train", "c.py")
    assert message in only_line(code, err)


def test_configs_with_a_byte_order_mark_are_read(tmp_path):
    (tmp_path / "b.py").write_bytes("\ufefftrain_cfg = dict(max_epochs=2)\n# Grüße\n".encode())
    (tmp_path / "c.py").write_bytes(
        "\ufeff_base_ = ['visionattn::quickstart', 'b.py']\n".replace("'visionattn::quickstart', ", "").encode()
    )
    assert load_config(tmp_path / "c.py").train_cfg.max_epochs == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", "a.png", "--model", "va_resnet10n_cbam.digits", "--out", "a.png/results"],
        ["browse", "quickstart", "--count", "1", "--out", "a.png/b.png"],
        ["train", "quickstart", "--work-dir", "a.png/results"],
        ["test", "quickstart", "va_resnet10n_cbam.digits", "--out", "a.png/m.json"],
        ["configs", "--copy", "quickstart", "a.png/c.py"],
        ["roofline", "cbam", "--batch", "1", "--out", "a.png/t.md"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_places_that_cannot_be_written(run_cli, tmp_path, arguments):
    import cv2
    import numpy as np

    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((32, 32, 3), np.uint8))
    code, _, err = run_cli(*arguments)
    assert "a.png" in only_line(code, err) and "name another place" in err


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(errno.EACCES, "", "/root/x"), "/root/x: Permission denied; name another place"),
        (OSError(errno.EROFS, "", "/cdrom/x"), "/cdrom/x: Read-only file system; it is on a read-only"),
        (OSError(errno.ENOSPC, ""), "No space left on device; the disk is full: make room"),
        (FileNotFoundError(errno.ENOENT, "", "x"), "x: No such file or directory"),
        (FileNotFoundError("no checkpoint at x"), "no checkpoint at x"),
        (ValueError("a\n  b"), "a b"),
        (
            ValueError("Caught ValueError in worker\nOriginal Traceback:\n  File\nValueError: cannot read x"),
            "cannot read x",
        ),
        (
            ModuleNotFoundError("No module named 'rich'", name="rich"),
            "this needs rich, which is not installed: pip install",
        ),
        (ModuleNotFoundError("No module named 'skimage'", name="skimage"), "pip install 'visionattn[train]'"),
        (RuntimeError("DataLoader worker (pid 3) exited unexpectedly"), "num_workers"),
    ],
)
def test_what_is_said(error, message):
    text = explain(error, argparse.Namespace())
    assert message in text and "\n" not in text


def test_faults_of_the_package_keep_their_traceback(run_cli, monkeypatch):
    from visionattn.cli import configs

    def fault(options):
        return {}["nothing"]

    monkeypatch.setattr(configs, "run", fault)
    with pytest.raises(KeyError):
        run_cli("configs")
    with pytest.raises(FileNotFoundError):
        run_cli("train", "nowhere", "--debug")


def test_a_reader_that_leaves_ends_the_command_quietly():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([*COMMAND, "configs"], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert done.stderr == "" and done.returncode == 128 + signal.SIGPIPE


def test_names_that_the_terminal_cannot_show_do_not_end_a_command(tmp_path):
    environment = {**os.environ, "PYTHONIOENCODING": "ascii:strict"}
    command = [*COMMAND, "configs", "--copy", "quickstart", "é.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "\\xe9.py" in done.stdout and (tmp_path / "é.py").exists()


def test_control_c_says_how_to_resume(tmp_path):
    settings = ["train_dataloader.batch_size=256", "default_hooks.logger.interval=1"]
    command = [*COMMAND, "train", "quickstart", "--work-dir", "my run", "--cfg-options", *settings]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    run = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    end = time.monotonic() + 120
    while not (tmp_path / "my run" / "last_checkpoint").exists() and time.monotonic() < end:
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 130 and out.startswith("training  quickstart\n")
    assert err == (
        "visionattn: stopped; to resume: visionattn train quickstart --resume --work-dir 'my run' "
        f"--cfg-options {' '.join(settings)}\n"
    )


@pytest.mark.parametrize("name", ["photo [edited].png", "z[/b].png"])
def test_brackets_in_names_are_no_markup(run_cli, tmp_path, monkeypatch, name):
    import cv2
    import numpy as np

    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    cv2.imwrite(str(tmp_path / name), np.zeros((32, 32, 3), np.uint8))
    code, out, err = run_cli("predict", name, "--model", "va_resnet10n_cbam.digits", "--out", "o[i]")
    assert code == 0 and name in out and "o[i], the table in predictions.csv" in out, err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "quickstart", "--device", "gpu"], "--device must be cpu, cuda or cuda:NUMBER, got 'gpu'"),
        (["train", "quickstart", "--model", "resnet10n_cbam"], "did you mean va_resnet10n_cbam"),
        (["train", "mask-rcnn_resnet50-cbam_16-12e_coco"], "RESNET50_CBAM_new_name_wrap.pth"),
        (["train", "mask-rcnn_resnet50-cbam_16-12e_coco"], "(to train from scratch: --model va_resnet50_cbam)"),
        (["predict", "."], "name a network: --model NAME|FILE, or --config CONFIG --checkpoint FILE"),
        (["predict", ".", "--config", "quickstart"], "--config needs --checkpoint"),
        (["cost", "--plugins", "cbm"], "unknown plug-in cbm"),
        (["cost", "--out", "a.txt"], "--out must be a .md file"),
    ],
)
def test_wrong_requests(run_cli, arguments, message):
    code, _, err = run_cli(*arguments)
    assert message in only_line(code, err)


def test_a_gpu_that_is_not_there(run_cli, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for command in (["train", "quickstart"], ["predict", ".", "--model", "va_resnet10n_cbam.digits"]):
        code, _, err = run_cli(*command, "--device", "cuda")
        assert "--device cuda: no GPU or driver was found; use --device cpu" in only_line(code, err) or (
            "without CUDA; use --device cpu" in err
        )
