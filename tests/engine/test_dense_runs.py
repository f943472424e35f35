"""Detection and segmentation from end to end: train, resume, test, predict elsewhere, publish."""

import csv
import json
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from engine.test_resume import run

import visionattn
from visionattn.engine import load_config, read_scalars
from visionattn.inference import read_records
from visionattn.utils.files import read_checkpoint
from visionattn.utils.resources import USER_FOLDER

CONFIGS = {"detection": ("quickstart-detection", "bbox/map"), "segmentation": ("quickstart-segmentation", "seg/miou")}
TINY = {
    "train_cfg.max_epochs": 2,
    "train_dataloader.batch_size": 8,
    "train_dataloader.dataset.length": 24,
    "train_dataloader.num_workers": 0,
    "train_dataloader.persistent_workers": False,
    "default_hooks.logger.interval": 1,
    **{
        f"{split}_dataloader.{key}": value
        for split in ("val", "test")
        for key, value in {
            "batch_size": 4,
            "dataset.length": 6,
            "num_workers": 0,
            "persistent_workers": False,
        }.items()
    },
}
# After so few steps no score is high.
OWN = {"detection": {"model.detector.score_thresh": 0.0}, "segmentation": {}}


@pytest.fixture(scope="module", params=CONFIGS)
def trained(request, tmp_path_factory):
    """Task, folder and output of a run of six steps."""
    from visionattn.cli import main

    name, _ = CONFIGS[request.param]
    work_dir = tmp_path_factory.mktemp(request.param) / "run"
    options = [f"{key}={value}" for key, value in {**TINY, **OWN[request.param]}.items()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            sys, "argv", ["visionattn", "train", name, "--work-dir", str(work_dir), "--cfg-options", *options]
        )
        main()
    return request.param, work_dir


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "scene.png"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 256, (70, 95, 3), np.uint8))
    return path


def best_of(trained):
    task, work_dir = trained
    return work_dir / f"best_{CONFIGS[task][1].replace('/', '_')}.pth"


def test_best_weights_are_those_of_the_best_evaluation(trained, run_cli, tmp_path):
    task, work_dir = trained
    name, metric = CONFIGS[task]
    best = best_of(trained)
    scores = [record[metric] for record in read_scalars(work_dir)[1]]
    assert len(scores) == 2 and read_checkpoint(best)["message_hub"]["runtime_info"]["best_score"] == max(scores)
    assert (work_dir / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    logged = read_scalars(work_dir)[0][-1]
    assert len([key for key in logged if key.startswith("loss_")]) >= 1 and logged["loss"] > 0

    options = [f"{key}={value}" for key, value in {**TINY, **OWN[task]}.items() if key.startswith(("test", "model"))]
    code, out, _ = run_cli("test", name, best, "--out", "metrics.json", "--cfg-options", *options)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert code == 0 and metrics[metric] == pytest.approx(max(scores), abs=1e-9) and f"{metrics[metric]:.6f}" in out
    kind = "precision_recall_bbox" if task == "detection" else "confusion_seg"
    (drawn,) = (tmp_path / "work_dirs").glob(f"*/*/{kind}.png")
    assert str(drawn.relative_to(tmp_path)) in out and cv2.imread(str(drawn)).std() > 1


FRESH = """
import json
from visionattn.inference import Predictor, predict_to_folder
predictor = Predictor("config.py", "best.pth", score=0.0)
results = []
predict_to_folder(predictor, "scene.png", "out", on_result=results.append)
print(json.dumps([list(predictor.network.classes), results[0].record()]))
"""


def test_a_fresh_process_needs_only_checkpoint_and_config(trained, picture, run_cli, tmp_path):
    """And says the same as the command here."""
    task, work_dir = trained
    config = next(work_dir.glob("*.py"))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(best_of(trained), elsewhere / "best.pth")
    shutil.copy(config, elsewhere / "config.py")
    shutil.copy(picture, elsewhere)
    done = subprocess.run([sys.executable, "-c", FRESH], cwd=elsewhere, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    classes, record = json.loads(done.stdout.splitlines()[-1])
    assert tuple(classes) == read_checkpoint(best_of(trained))["meta"]["dataset_meta"]["classes"]

    score = ["--score", "0"] if task == "detection" else []
    code, _, err = run_cli(
        "predict", picture, "--config", config, "--checkpoint", best_of(trained), *score, "--out", "out"
    )
    assert code == 0, err
    (same,) = read_records(tmp_path / "out")
    assert record.items() <= same.items()
    for folder in (tmp_path / "out", elsewhere / "out"):
        assert cv2.imread(str(folder / "00000_scene.png")).shape[1] == 480
    if task == "segmentation":
        assert cv2.imread(str(tmp_path / "out" / "00000_scene_classes.png")).shape == (70, 95, 3)
        assert sum(share["share"] for share in record["shares"]) == pytest.approx(1, abs=1e-4)
    else:
        records = json.loads((tmp_path / "out" / "predictions.json").read_text())
        assert len(records) == len(record["objects"]) > 0
        assert set(records[0]) == {"image_id", "category_id", "bbox", "score"}


def test_published_as_a_file_that_the_config_and_a_name_take(trained, run_cli, picture, monkeypatch, tmp_path):
    task, _ = trained
    name, metric = CONFIGS[task]
    config = tmp_path / "tiny.py"
    base = load_config(name)
    base.merge_from_dict({key: value for key, value in TINY.items() if key.startswith("test")} | OWN[task])
    base.dump(config)
    tag = f"va_resnet10n_cbam.{task}"
    code, _, err = run_cli("publish", config, best_of(trained), "--name", tag, "--license", "mit", "--out", "mine")
    assert code == 0, err
    (path,) = (tmp_path / "mine").iterdir()
    facts = visionattn.checkpoints.info(path)
    assert facts["task"] == task and facts["name"] == tag and metric in facts["metrics"]
    code, _, err = run_cli("test", config, path, "--out", "metrics.json")
    assert code == 0, err
    assert json.loads((tmp_path / "metrics.json").read_text())[metric] == pytest.approx(facts["metrics"][metric])

    # By name and by file, without the config; as the config and the training checkpoint do.
    monkeypatch.setenv(USER_FOLDER, str(tmp_path / "mine"))
    ways = {
        "name": ["--model", tag],
        "file": ["--model", path],
        "config": ["--config", config, "--checkpoint", best_of(trained)],
    }
    score = ["--score", "0"] if task == "detection" else []
    tables = []
    for out, way in ways.items():
        code, _, err = run_cli("predict", picture, *way, *score, "--out", out)
        assert code == 0, err
        tables.append(list(csv.DictReader((tmp_path / out / "predictions.csv").open())))
    assert all(table == tables[0] for table in tables)
    assert {row["label"] for row in tables[0]} <= set(facts["input"]["label_names"])


@pytest.mark.parametrize("task", ["detection", pytest.param("segmentation", marks=pytest.mark.slow)])
def test_killed_and_resumed_runs_end_alike(task, tmp_path):
    name, metric = CONFIGS[task]
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert run(name, whole, overrides=TINY)
    assert not run(name, halves, kill_at=(5, 0.0), overrides=TINY)
    assert run(name, halves, overrides=TINY)
    a, b = (read_checkpoint(folder / "epoch_2.pth")["state_dict"] for folder in (whole, halves))
    assert all(torch.equal(value, b[key]) for key, value in a.items())
    assert [r[metric] for r in read_scalars(whole)[1]] == [r[metric] for r in read_scalars(halves)[1]]


@pytest.mark.parametrize("task", CONFIGS)
def test_perfect_predictions_score_one(task):
    from mmengine.registry import DATASETS, METRICS

    name, metric = CONFIGS[task]
    config = load_config(name, {"test_dataloader.dataset.length": 8})
    dataset = DATASETS.build(config.test_dataloader.dataset)
    scores = METRICS.build(config.test_evaluator)
    scores.dataset_meta = dataset.metainfo
    for index in range(len(dataset)):
        sample = dataset[index]["data_samples"]
        if task == "detection":
            target = sample["original"]
            preds = {key: target[key] for key in ("boxes", "labels")} | {"scores": torch.ones(len(target["labels"]))}
        else:
            target = preds = sample["original_mask"]
        scores.process(None, [{"preds": preds, "target": target}])
    assert scores.evaluate(len(dataset))[metric] == pytest.approx(1, abs=1e-6)
