"""The config for one's own data: pictures as the network wants them, batches that fit, scores of the task."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from visionattn.data.discovery import DiscoveredData
from visionattn.engine.own_data import config_text, write_config


def config(model="va_resnet50_cbam", pretrained=False, **changes):
    """The settings for data, as Python reads them."""
    given = {
        "path": Path("photos"),
        "task": "classification",
        "layout": "a folder a class",
        "classes": ("cat", "dog", "owl"),
        "datasets": {split: {"type": "ImageFolder", "root": split} for split in ("train", "val", "test")},
        "counts": {"train": 1000, "val": 100, "test": 100},
        "size": (300, 400),
        "split": "as it was",
        **changes,
    }
    settings = {}
    exec(config_text(DiscoveredData(**given), model, pretrained), settings)
    return settings


@pytest.mark.parametrize(
    ("model", "side", "shorter"), [("va_resnet50_cbam", 224, 256), ("vit_tiny_patch16_384", 384, 439)]
)
def test_large_pictures_come_as_the_network_expects_them(model, side, shorter):
    found = config(model)
    crop, flip = found["train_dataloader"]["dataset"]["pipeline"]
    assert crop == {"type": "RandomResizedCrop", "size": (side, side), "scale": (0.2, 1.0)}
    assert flip == {"type": "HorizontalFlip", "p": 0.5}
    for split in ("val", "test"):
        assert found[f"{split}_dataloader"]["dataset"]["pipeline"] == [
            {"type": "SmallestMaxSize", "max_size": shorter},
            {"type": "CenterCrop", "height": side, "width": side},
        ]
        assert found[f"{split}_dataloader"]["dataset"]["root"] == split
    vit = model.startswith("vit")
    assert found["data_preprocessor"]["mean"] == ([127.5] * 3 if vit else [123.675, 116.28, 103.53])
    assert found["data_preprocessor"]["std"] == ([127.5] * 3 if vit else [58.395, 57.12, 57.375])


@pytest.mark.parametrize(("size", "seen"), [((64, 48), (64, 48)), ((24, 28), (32, 32))])
def test_small_pictures_are_seen_as_they_are(size, seen):
    found = config(size=size)
    resize = {"type": "Resize", "height": seen[0], "width": seen[1]}
    shift = {"type": "Affine", "translate_percent": (-0.08, 0.08), "rotate": (-10, 10), "p": 1.0}
    assert found["train_dataloader"]["dataset"]["pipeline"] == [resize, shift]
    assert found["val_dataloader"]["dataset"]["pipeline"] == [resize]
    assert config(size=(64, 65))["val_dataloader"]["dataset"]["pipeline"][0]["type"] == "SmallestMaxSize"


@pytest.mark.parametrize(
    ("task", "scores"),
    [
        ("classification", {"top1": {"num_classes": 3}, "confusion": {"num_classes": 3}}),
        ("segmentation", {"seg": {"num_classes": 3}}),
        ("instance", {"segm": {"type": "DetectionScores", "iou_type": "segm"}}),
        ("detection", None),  # the recipe's own
    ],
)
def test_scores_are_those_of_the_task(task, scores):
    found = config(task=task)
    assert found["_base_"] == [f"visionattn::_base_/own_data/{'detection' if task == 'instance' else task}"]
    for split in ("val", "test"):
        assert found.get(f"{split}_evaluator") == (scores and {"scores": scores})
    counted = found["model"]["backbone"] if task == "classification" else found["model"]
    assert counted["num_classes"] == 3
    assert ("detector" in found["model"]) == (task == "instance")


@pytest.mark.parametrize(
    ("task", "count", "batch"),
    [
        ("classification", 1000, 32),
        ("classification", 160, 20),
        ("classification", 9, 2),
        ("detection", 1000, 4),
        ("detection", 24, 3),
    ],
)
def test_an_epoch_has_some_steps(task, count, batch):
    assert config(task=task, counts={"train": count, "val": 2, "test": 2})["train_dataloader"]["batch_size"] == batch


@pytest.mark.parametrize(("size", "short"), [((300, 400), 300), ((700, 600), 512), ((40, 90), 64)])
def test_pictures_of_dense_tasks_keep_their_proportions(size, short):
    found = config(task="detection", size=size)
    fit = {"type": "FitResize", "short": short, "long": 2 * short}
    assert found["val_dataloader"]["dataset"]["pipeline"] == [fit]
    assert found["train_dataloader"]["dataset"]["pipeline"] == [fit, {"type": "HorizontalFlip", "p": 0.5}]


def test_pretrained_networks_take_the_rate_of_the_recipe():
    scratch, tuned = config(), config(pretrained=True)
    assert scratch["optim_wrapper"] == {"optimizer": {"lr": 2e-3}} and "optim_wrapper" not in tuned
    assert tuned["model"]["backbone"]["pretrained"] and "pretrained" not in scratch["model"]["backbone"]


@pytest.mark.parametrize("given", [None, "lists"])
def test_a_split_is_written_beside_the_config_or_where_it_is_told(given, tmp_path):
    for number in range(20):
        folder = tmp_path / "photos" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"{number}.png"), np.full((8, 8, 3), 10 * number, np.uint8))
    path = tmp_path / "run" / "own.py"
    path.parent.mkdir()
    found = write_config(path, tmp_path / "photos", "va_resnet10n_cbam", split_dir=given and tmp_path / given)
    assert found.counts["train"] == 16 and path.read_text().startswith("# ")
    lists = {file.parent for file in tmp_path.rglob("*.txt")}
    assert lists and all((tmp_path / (given or "run")) in (folder, *folder.parents) for folder in lists)
    with pytest.raises(ValueError, match=r"a config is a Python file \(.py\), got own.yaml"):
        write_config("own.yaml", tmp_path / "photos", "va_resnet10n_cbam")
