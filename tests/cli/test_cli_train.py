"""`visionattn train`: what is said before, the threads it takes, and the commands it ends with."""

import json
import shlex
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch

from visionattn.engine import load_config

QUICK = ["train_cfg.max_epochs=1", "train_dataloader.num_batch_per_epoch=2"]


def test_next_commands_work_as_printed(run_cli, tmp_path):
    """After other settings, another network and a folder with a space in its name."""
    settings = [*QUICK, "model.backbone.channels=[8,16,16,16]", "custom_hooks=[]"]
    options = ["--model", "va_resnet10n_ela_t", "--work-dir", "my run", "--device", "cpu"]
    code, out, err = run_cli("train", "quickstart", *options, "--cfg-options", *settings)
    assert code == 0, err
    test, predict = (line.split(None, 1)[1] if line.startswith("next") else line for line in out.splitlines()[-2:])
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((32, 32, 3), np.uint8))
    program, *arguments = shlex.split(test)
    assert program == "visionattn" and "--work-dir" in arguments
    code, tested, err = run_cli(*arguments)
    assert code == 0 and "top1" in tested, err
    assert (tmp_path / "my run-test").is_dir() and not (tmp_path / "work_dirs").exists()
    program, *arguments = shlex.split(predict.replace("PICTURES", "a.png"))
    code, predicted, err = run_cli(*arguments)
    assert program == "visionattn" and code == 0 and "a.png" in predicted, err


def test_header_and_threads(run_cli, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        code, out, err = run_cli("train", "quickstart", "--cfg-options", *QUICK)
        assert code == 0, err
        assert out.startswith("training  quickstart\n")
        if not torch.cuda.is_available():
            assert "device    cpu, 1 thread\n" in out and torch.get_num_threads() == 1, "a small network"
        assert "va_resnet10n_cbam, 0.31 M parameters (Classifier)\n" in out
        assert "128 to train on, 359 to evaluate on, 10 classes (Digits)\n" in out
        assert "length    1 epoch of 2 steps, 64 pictures each\n" in out and "folder    " in out
        assert "will be deprecated" not in out + err

        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        torch.set_num_threads(2)
        run_cli("train", "quickstart", "--fresh", "--cfg-options", *QUICK)
        assert torch.get_num_threads() == 2, "the user's choice"
    finally:
        torch.set_num_threads(before)


def test_a_shortened_run_learns_with_its_whole_schedule(run_cli, tmp_path):
    """The rate rises and falls within the one epoch; it would not have left its first hundredth."""
    code, _, err = run_cli("train", "quickstart", "--cfg-options", "train_cfg.max_epochs=1")
    assert code == 0, err
    (log,) = (tmp_path / "work_dirs" / "quickstart").glob("*/vis_data/scalars.json")
    records = [json.loads(line) for line in log.read_text().splitlines()]
    rates = [record["lr"] for record in records if "lr" in record]
    assert max(rates) > 1e-3 and rates[-1] < 1e-4
    assert next(record["top1"] for record in records if "top1" in record) > 0.5


def test_mixed_precision(run_cli, monkeypatch):
    from visionattn.engine import AutocastOptimWrapper

    steps = []
    backward = AutocastOptimWrapper.backward
    monkeypatch.setattr(AutocastOptimWrapper, "backward", lambda self, loss: steps.append(loss) or backward(self, loss))
    settings = ["train_cfg.max_epochs=1", "train_dataloader.num_batch_per_epoch=1", "train_dataloader.batch_size=8"]
    code, _, err = run_cli("train", "quickstart", "--amp", "--cfg-options", *settings)
    assert code == 0 and len(steps) == 1, err


def test_scores_without_a_value_are_null(run_cli, tmp_path, monkeypatch):
    from visionattn.cli import test as command

    evaluate = command.evaluate

    def without(*arguments):
        metrics, runner = evaluate(*arguments)
        return {**metrics, "seg/iou": float("nan")}, runner

    monkeypatch.setattr(command, "evaluate", without)
    code, *_ = run_cli("test", "quickstart", "va_resnet10n_cbam.digits", "--out", "m.json")
    text = (tmp_path / "m.json").read_text()
    assert code == 0 and json.loads(text)["seg/iou"] is None and "NaN" not in text


@pytest.mark.parametrize("name", ["quickstart", "mask-rcnn_davit-tiny_16-12e_coco"])
def test_every_setting_of_a_config_may_be_repeated(name):
    """An override with the value that is there already changes nothing and is not refused."""
    config = load_config(name)

    def leaves(node, path=()):
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, value in items:
            yield from leaves(value, (*path, str(key)))
        if not items or not node:
            yield ".".join(path), node

    sections = {key: value for key, value in config._cfg_dict.items() if not key.endswith("_pipeline")}
    settings = dict(leaves({key: value for key, value in sections.items() if key != "data_root"}))
    assert len(settings) > 50
    assert load_config(name, settings)._cfg_dict == config._cfg_dict


def test_resume_with_a_config_that_starts_from_weights(run_cli, tmp_path):
    """`load_from` in a config: the run starts there, and resumes from what it has saved itself."""
    assert run_cli("train", "quickstart", "--work-dir", "first", "--cfg-options", *QUICK)[0] == 0
    options = ["--work-dir", "second", "--resume", "--cfg-options", *QUICK, "load_from=first/best_top1.pth"]
    code, out, err = run_cli("train", "quickstart", *options)
    assert code == 0 and "Loaded first/best_top1.pth" in out and "Resumed" not in out, err
    code, out, err = run_cli("train", "quickstart", *options, "train_cfg.max_epochs=2")
    assert code == 0 and "second/epoch_1.pth" in out and "Resumed after epoch 1, iteration 2" in out, err


def test_fresh_leaves_a_running_run_alone(run_cli, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last_checkpoint").write_text("epoch_1.pth")
    held = subprocess.Popen(
        [sys.executable, "-c", "from visionattn.engine.lock import *\nwith work_dir_lock('run'): print(); input()"],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        held.stdout.readline()
        code, _, err = run_cli("train", "quickstart", "--work-dir", "run", "--fresh")
        assert code == 2 and f"run is in use by another run (process {held.pid} on" in err
        assert (tmp_path / "run" / "last_checkpoint").exists()
    finally:
        held.kill()


def test_a_second_evaluation_keeps_the_pictures_of_the_first(run_cli, tmp_path):
    printed = [run_cli("test", "quickstart", "va_resnet10n_cbam.digits")[1] for _ in range(2)]
    first, second = (line.split()[1] for out in printed for line in out.splitlines() if line.startswith("picture"))
    assert first != second and (tmp_path / first).exists() and (tmp_path / second).exists()
