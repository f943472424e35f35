"""The commands from end to end: train, test, publish, load by name, predict."""

import contextlib
import csv
import json
import os
import pty
import subprocess
import sys

import cv2
import numpy as np
import pytest
import timm
import torch
from sklearn.datasets import load_digits

import visionattn
from visionattn.utils.files import read_checkpoint


def test_train_leaves_what_it_says(trained):
    assert (trained / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in trained.glob("*.pth")) == [
        "best_top1.pth",
        *(f"epoch_{n}.pth" for n in (1, 2, 3)),
    ]
    assert list(trained.glob("*/vis_data/events.out.tfevents*")), "TensorBoard's log"
    meta = read_checkpoint(trained / "best_top1.pth")["meta"]
    assert meta["dataset_meta"]["classes"] == tuple("0123456789")


def test_from_checkpoint_to_network_by_name(trained, run_cli, tmp_path):
    best = trained / "best_top1.pth"
    code, out, _ = run_cli("test", "quickstart", best, "--out", "metrics.json")
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert code == 0 and f"{metrics['top1']:.6f}" in out and metrics["top1"] > 0.9

    name = "va_resnet10n_cbam.mine"
    code, out, _ = run_cli("publish", "quickstart", best, "--name", name, "--license", "mit", "--out", "mine")
    assert code == 0
    (path,) = (tmp_path / "mine").glob("*.safetensors")
    facts = visionattn.checkpoints.info(path)
    assert (facts["name"], facts["metrics"]) == (name, metrics)
    assert (facts["license"], facts["input"]["mean"], facts["input"]["crop_mode"]) == ("mit", [0.5] * 3, "squash")

    code, out, _ = run_cli("test", "quickstart", path)
    assert code == 0 and f"{metrics['top1']:.6f}" in out
    model = timm.create_model("va_resnet10n_cbam", pretrained=True, pretrained_cfg_overlay={"file": str(path)})
    trained_weights = read_checkpoint(best)["state_dict"]
    assert all(torch.equal(value, trained_weights[f"backbone.{key}"]) for key, value in model.state_dict().items())

    # Publishing again replaces the file.
    code, *_ = run_cli(
        "publish", "quickstart", trained / "epoch_1.pth", "--name", name, "--license", "mit", "--out", "mine"
    )
    (again,) = (tmp_path / "mine").glob("*.safetensors")
    assert code == 0 and again.name != path.name


def test_packaged_checkpoint_by_timm_alone():
    digits = load_digits()
    model = timm.create_model("va_resnet10n_cbam.digits", pretrained=True).eval()
    config = timm.data.resolve_model_data_config(model)
    pixels = torch.from_numpy(digits.images[4::5] / 16).float()[:, None].expand(-1, 3, -1, -1)
    x = torch.nn.functional.interpolate(pixels, config["input_size"][-2:], mode="bilinear")
    x = (x - torch.tensor(config["mean"])[:, None, None]) / torch.tensor(config["std"])[:, None, None]
    with torch.inference_mode():
        assert (model(x).argmax(-1).numpy() == digits.target[4::5]).mean() > 0.97


@pytest.mark.parametrize("source", ["name", "checkpoint"])
def test_predict(source, trained, run_cli, tmp_path):
    digits = load_digits()
    for number in (4, 9):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.rint(digits.images[number] * 255 / 16).astype(np.uint8))
    where = {
        "name": ["--model", "va_resnet10n_cbam.digits"],
        "checkpoint": ["--config", "quickstart", "--checkpoint", trained / "best_top1.pth"],
    }[source]
    code, out, _ = run_cli("predict", "4.png", ".", *where, "--out", "out", "--topk", "3")
    assert (code == 0 and "3/3" in out.replace(" ", "")) or "predictions.csv" in out
    rows = list(csv.DictReader((tmp_path / "out" / "predictions.csv").open()))
    assert [row["label_1"] for row in rows] == ["4", "4", "9"]
    assert all(float(row["score_1"]) >= float(row["score_2"]) >= float(row["score_3"]) for row in rows)
    picture = cv2.imread(str(tmp_path / "out" / "00000_4.png"))
    assert picture.shape[0] > picture.shape[1] == 480


def test_fresh_moves_the_old_run_aside(trained, run_cli, tmp_path):
    options = ["--cfg-options", "train_cfg.max_epochs=2"]
    assert run_cli("train", "quickstart", *options)[0] == 0
    assert run_cli("train", "quickstart", *options)[0] == 2
    code, out, _ = run_cli("train", "quickstart", "--fresh", *options)
    assert code == 0 and "the earlier run is now in work_dirs/quickstart-until-" in out
    assert len(list((tmp_path / "work_dirs").glob("quickstart*/epoch_2.pth"))) == 2
    code, out, _ = run_cli("train", "quickstart", "--resume", *options)
    assert code == 0 and "score     top1" in out


def test_live_progress_on_a_terminal(tmp_path):
    """A bar in place of the steps' lines; results are still lines, above the bar."""
    master, terminal = pty.openpty()
    command = [sys.executable, "-m", "visionattn.cli", "train", "quickstart", "--cfg-options", "train_cfg.max_epochs=2"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=terminal, stderr=terminal, env={**os.environ, "TERM": "xterm"}
    )
    os.close(terminal)
    shown = b""
    with contextlib.suppress(OSError):  # a terminal whose other side is gone ends in an error
        while chunk := os.read(master, 4096):
            shown += chunk
    os.close(master)
    assert process.wait(60) == 0
    text = shown.decode()
    assert "epoch 2/2, loss" in text and "44/44" in text and "━" in text
    assert "eta:" not in text and "Epoch(val) [2]" in text and "score     top1" in text
