"""What the guide to large data and many GPUs says: sharded training, recomputed blocks, bfloat16, counted figures."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from dense import detection_batch, segmentation_batch
from safetensors.torch import load_file

import visionattn
from visionattn.profiling.cost import count_macs
from visionattn.tasks import Classifier, Detector, Segmentor

ROOT = Path(__file__).parents[2]


def train(folder, processes, epochs, *more):
    """Runs the example of FSDP2; returns its weights and what it printed."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--rdzv-backend=c10d"]
    command += ["--rdzv-endpoint=localhost:0", str(ROOT / "examples" / "distributed" / "fsdp2.py")]
    command += ["--epochs", str(epochs), "--batch-size", "256", "--work-dir", str(folder), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder.parent, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(folder / "model.safetensors"), done.stdout


def test_sharded_training_is_that_of_one_process_and_resumes(tmp_path):
    whole, printed = train(tmp_path / "two", 2, 2)
    assert printed.count("2 processes") == 2
    # A plain network takes the weights.
    timm.create_model("va_vit_softmax_nano", num_classes=10, in_chans=1).load_state_dict(whole)
    train(tmp_path / "parts", 2, 1)
    parts, printed = train(tmp_path / "parts", 2, 2)
    assert re.findall(r"epoch (\d)", printed) == ["2"], "it goes on after the epoch that was saved"
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    # One process, with blocks computed again: sums in another order.
    one, _ = train(tmp_path / "one", 1, 2, "--grad-checkpointing")
    for name, value in whole.items():
        torch.testing.assert_close(one[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_bfloat16_trains(tmp_path):
    _, printed = train(tmp_path / "bf16", 2, 2, "--bf16")
    first, second = map(float, re.findall(r"loss (\S+)", printed))
    assert second < first < 2.6


@pytest.mark.parametrize("kind", ["classifier", "detector", "segmentor"])
def test_grad_checkpointing_is_a_setting_of_the_backbone(kind):
    """Gradients are the same, and blocks are computed twice."""
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        backbone = {"model_name": "va_stm_swin_nano", "grad_checkpointing": checkpointing, "num_classes": 5}
        dense = {key: value for key, value in backbone.items() if key != "num_classes"}
        if kind == "classifier":
            task, inputs = Classifier(backbone), torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
            samples = {"label": torch.tensor([0, 3])}
        elif kind == "detector":
            task = Detector(dense, {"type": "FCOS"}, num_classes=5)
            inputs, samples = detection_batch([(64, 64)], [2])
        else:
            task = Segmentor(dense, {"type": "FPN"}, num_classes=5, losses=[{"type": "CrossEntropyLoss"}])
            inputs, samples = segmentation_batch([(64, 64), (64, 64)])
        calls = []
        block = next(m for name, m in task.named_modules() if re.search(r"stages.0.blocks.0$", name))
        block.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        task.train()
        torch.manual_seed(2)
        losses = task(inputs, samples, mode="loss")
        sum(value.sum() for name, value in losses.items() if "loss" in name).backward()
        found.append((len(calls), {name: p.grad for name, p in task.named_parameters() if p.grad is not None}))
    (once, plain), (twice, again) = found
    assert (once, twice) == (1, 2) and plain.keys() == again.keys()
    for name, grad in plain.items():
        torch.testing.assert_close(again[name], grad)


def test_a_published_network_is_not_bound_to_recompute(run_cli):
    short = ["train_cfg.max_epochs=1", "train_dataloader.num_batch_per_epoch=2", "train_dataloader.num_workers=0"]
    short += ["val_dataloader.num_workers=0", "model.backbone.grad_checkpointing=True"]
    code, _, error = run_cli("train", "quickstart", "--model", "va_stm_swin_nano", "--amp", "--cfg-options", *short)
    assert code == 0, error
    (run,) = Path("work_dirs").iterdir()
    name = "va_stm_swin_nano.mine"
    best = run / "best_top1.pth"
    (config,) = run.glob("*.py")  # with the network that was put in
    code, _, error = run_cli("publish", config, best, "--name", name, "--license", "mit")
    assert code == 0, error
    model = timm.create_model(name, pretrained=True)
    assert model.num_classes == 10 and not model.grad_checkpointing


def test_figures_of_the_plan_are_counted():
    """MACs of the guide's table, and the days that follow from them by the guide's own formula."""
    text = (ROOT / "docs" / "guides" / "scale.md").read_text()
    rows = re.findall(r"^\| `(\S+)` \| (\d+) \| ([\d.]+) \| (.+) \|$", text, re.MULTILINE)
    assert len(rows) >= 4
    share, peak = 0.35, 312e12  # as the guide says
    assert "35 %" in text and "312 TFLOP/s" in text
    for name, epochs, gmacs, hours in rows:
        model = timm.create_model(name, device="meta")
        macs = count_macs(model, model.pretrained_cfg["input_size"], batch=2)
        assert float(gmacs) == pytest.approx(macs / 1e9, rel=0.01), name
        for count, said in zip((8, 64, 256), hours.split(" | "), strict=True):
            seconds = 6 * macs * 1_281_167 * int(epochs) / (share * peak * count)
            assert float(said) == pytest.approx(seconds / 3600, rel=0.03, abs=0.006), (name, count)
    assert visionattn.__version__
