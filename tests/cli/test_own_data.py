"""From a folder of one's own to a model that loads by name: `train --data`, `init`, publish, predict."""

import csv
import json

import cv2
import numpy as np
import pytest
import timm
from sklearn.datasets import load_digits

from visionattn.engine import load_config

MODEL = "va_resnet10n_cbam"


@pytest.fixture
def digits(tmp_path):
    """Pictures of digits of 24 px, and their labels; the command runs in this folder."""
    data = load_digits()
    chosen = np.flatnonzero(data.target < 3)[:90]
    pictures = [cv2.resize((data.images[n] * 15).astype(np.uint8), (24, 24)) for n in chosen]
    return list(zip(pictures, data.target[chosen].tolist(), strict=True))


@pytest.fixture
def folders(digits, tmp_path):
    for number, (picture, label) in enumerate(digits):
        folder = tmp_path / "photos" / ("zero", "one", "two")[label]
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"{number}.png"), picture)
    (tmp_path / "photos" / ".ipynb_checkpoints").mkdir()
    return tmp_path / "photos"


def test_the_road_from_a_folder_to_a_name(run_cli, folders, tmp_path, monkeypatch):
    short = ["--cfg-options", "train_cfg.max_epochs=10", "train_dataloader.num_workers=0"]
    short += ["train_dataloader.persistent_workers=False", "val_dataloader.num_workers=0"]
    short += ["val_dataloader.persistent_workers=False"]
    code, out, err = run_cli("train", "--data", "photos", "--model", MODEL, *short)
    assert code == 0, err
    run = tmp_path / "work_dirs" / f"photos-{MODEL}"
    config, best = run.with_name(f"{run.name}.py"), run / "best_top1.pth"
    assert best.exists() and f"config    work_dirs/photos-{MODEL}.py" in out
    split = {name: (run / "split" / f"{name}.txt").read_text().split() for name in ("train", "val")}
    assert len(split["train"]) == 72 and len(split["val"]) == 18 and not set(split["train"]) & set(split["val"])
    assert len(config.read_text().splitlines()) <= 60

    name = f"{MODEL}.my_photos"
    code, _, err = run_cli("publish", config, best, "--name", name, "--license", "mit")
    assert code == 0, err
    monkeypatch.setenv("VISIONATTN_CHECKPOINTS", str(tmp_path / "checkpoints"))
    model = timm.create_model(name, pretrained=True)
    assert model.num_classes == 3 and model.pretrained_cfg["label_names"] == ("one", "two", "zero")
    code, _, err = run_cli("predict", folders / "zero", "--model", name, "--out", "seen")
    assert code == 0, err
    rows = list(csv.DictReader((tmp_path / "seen" / "predictions.csv").open()))
    assert sum(row["label_1"] == "zero" for row in rows) > len(rows) / 2


def test_a_run_in_the_way_is_left_alone_or_backed_up(run_cli, folders, tmp_path):
    arguments = ["train", "--data", "photos", "--model", MODEL, "--work-dir", "run", "--cfg-options"]
    arguments += ["train_cfg.max_epochs=1", "train_dataloader.num_workers=0", "val_dataloader.num_workers=0"]
    arguments += ["train_dataloader.persistent_workers=False", "val_dataloader.persistent_workers=False"]
    (tmp_path / "run" / "split").mkdir(parents=True)
    (tmp_path / "run" / "last_checkpoint").write_text("epoch_1.pth")
    (tmp_path / "run.py").write_text("# changed by hand\n")
    code, _, err = run_cli(*arguments)
    assert code == 2 and "run holds a run: --resume continues it, --fresh backs it up" in err
    assert (tmp_path / "run.py").read_text() == "# changed by hand\n" and not list(
        (tmp_path / "run" / "split").iterdir()
    )
    code, _, err = run_cli(*arguments, "--fresh")
    assert code == 0, err
    assert (tmp_path / "run" / "epoch_1.pth").exists() and (tmp_path / "run" / "split" / "val.txt").exists()
    assert len(list(tmp_path.glob("run-until-*/last_checkpoint"))) == 1


def test_a_config_to_go_on_from(run_cli, folders, tmp_path):
    code, out, err = run_cli("init", "--data", "photos", "--model", MODEL, "--out", "mine.py")
    assert code == 0 and "next: visionattn train mine.py" in out, err
    config = load_config(tmp_path / "mine.py")
    assert config.model.backbone.num_classes == config.val_evaluator.scores.top1.num_classes == 3
    code, _, err = run_cli("init", "--data", "photos", "--model", MODEL, "--out", "mine.py")
    assert code == 2 and "mine.py exists already" in err


def write_yolo(digits, folder):
    for number, (picture, label) in enumerate(digits[:24]):
        canvas = np.zeros((64, 96, 3), np.uint8)
        canvas[20:44, 30:54] = picture[..., None]
        for name in ("images", "labels"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / "images" / f"{number}.png"), canvas)
        (folder / "labels" / f"{number}.txt").write_text(f"{label} {42 / 96} {32 / 64} {24 / 96} {24 / 64}\n")


def write_coco(digits, folder):
    (folder / "images").mkdir(parents=True)
    coco = {"images": [], "annotations": [], "categories": [{"id": n + 1, "name": str(n)} for n in range(3)]}
    for number, (picture, label) in enumerate(digits[:24], start=1):
        cv2.imwrite(str(folder / "images" / f"{number}.png"), np.pad(picture, 20))
        coco["images"].append({"id": number, "file_name": f"{number}.png", "width": 64, "height": 64})
        outline = [[20, 20, 44, 20, 44, 44, 20, 44]]
        box = {"bbox": [20, 20, 24, 24], "area": 576, "iscrowd": 0, "segmentation": outline}
        coco["annotations"].append({"id": number, "image_id": number, "category_id": label + 1, **box})
    (folder / "annotations.json").write_text(json.dumps(coco))


def write_masks(digits, folder):
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for number, (picture, label) in enumerate(digits[:24]):
        mask = np.zeros((64, 64), np.uint8)
        mask[20:44, 20:44] = (picture > 60) * (label + 1)
        cv2.imwrite(str(folder / "images" / f"{number}.png"), np.pad(picture, 20))
        cv2.imwrite(str(folder / "masks" / f"{number}.png"), mask)


@pytest.mark.parametrize(
    ("write", "task", "metric"),
    [
        (write_yolo, "detection", "bbox_map"),
        pytest.param(write_coco, "instance", "bbox_map", marks=pytest.mark.slow),
        (write_masks, "segmentation", "seg_miou"),
    ],
)
def test_other_tasks_train_on_data_of_ones_own(run_cli, digits, tmp_path, write, task, metric):
    write(digits, tmp_path / "data")
    short = ["train_cfg.max_epochs=1"]
    for split in ("train", "val"):
        short += [f"{split}_dataloader.num_workers=0", f"{split}_dataloader.persistent_workers=False"]
    code, _, err = run_cli(
        "train", "--data", "data", "--model", MODEL, "--task", task, "--work-dir", "run", "--cfg-options", *short
    )
    assert code == 0, err
    assert (tmp_path / "run" / "epoch_1.pth").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "name a config, or data of your own by --data"),
        (["train", "quickstart", "--data", "x"], "one of the two"),
        (["train", "quickstart", "--pretrained"], "--task and --pretrained go with --data"),
        (["train", "--data", "nowhere", "--model", MODEL], "no data at nowhere"),
        (["train", "--data", "."], "--data needs --model"),
        (["init", "--data", ".", "--model", "va_resnet10n_cbm"], "timm has no network 'va_resnet10n_cbm'"),
        (["init", "--data", ".", "--model", MODEL], "no data set recognised in ."),
    ],
)
def test_bad_requests(run_cli, arguments, message):
    code, _, err = run_cli(*arguments)
    assert code == 2 and message in err
