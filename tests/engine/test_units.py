"""Which values of a metric are better, in which unit they are, and that all who print or choose know it."""

import json
import math
import time
from types import SimpleNamespace

import pytest
import torch
from engine.small import said, small_runner
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

from visionattn.engine import (
    MetricInfo,
    Runner,
    TorchMetrics,
    draw_learning_curve,
    draw_scores,
    load_config,
    metric_info,
    training_summary,
)
from visionattn.utils.json_text import to_json

NAN = math.nan


@pytest.mark.parametrize(
    "info, value, text",
    [
        (MetricInfo("top1", "greater", "fraction"), 0.93041, "93.04 %"),
        (MetricInfo("top1", "greater", "fraction"), NAN, "n/a"),
        (MetricInfo("my/rmse", "less"), 4.0, "4.00"),
        (MetricInfo("my/rmse", "less", "px"), 12.345, "12.35 px"),
        (MetricInfo("error"), 0.00123, "0.00123"),
        (MetricInfo("error"), 0.0, "0.00"),
        (MetricInfo("error"), None, "n/a"),
    ],
)
def test_format(info, value, text):
    assert info.format(value) == text


def test_best():
    points = [(1, 9.0), (2, 4.0), (3, NAN), (4, 4.0), (5, 7.0)]
    assert MetricInfo("rmse", "less").best(points) == (2, 4.0)
    assert MetricInfo("top1", "greater").best(points) == (1, 9.0)
    assert MetricInfo("top1", "greater").best([(1, NAN)]) is None
    assert not MetricInfo("top1").improves(NAN, None) and MetricInfo("top1").improves(0.0, NAN)
    with pytest.raises(ValueError, match="metric 'top1': better must be 'greater' or 'less', got 'more'"):
        MetricInfo("top1", "more")


def test_known_of_torchmetrics_and_ours():
    metrics = [
        TorchMetrics({"top1": {"type": "MulticlassAccuracy", "num_classes": 3}}),
        TorchMetrics(
            {
                "calibration": {"type": "MulticlassCalibrationError", "num_classes": 3},
                "seg": {"type": "SegmentationScores", "num_classes": 3},
                "bbox": {"type": "DetectionScores"},
                "confusion": {"type": "MulticlassConfusionMatrix", "num_classes": 3},
                "offset": {"type": "MulticlassHingeLoss", "num_classes": 3, "better": "less", "unit": "px"},
            },
            prefix="a",
        ),
    ]
    expected = {
        "top1": ("greater", "fraction"),
        "a/calibration": ("less", "fraction"),
        "a/seg/miou": ("greater", "fraction"),
        "a/bbox/ap/cow": ("greater", "fraction"),
        "a/confusion": (None, "fraction"),
        "a/offset": ("less", "px"),
    }
    for name, (better, unit) in expected.items():
        info = metric_info(metrics, name)
        assert (info.name, info.better) == (name, better) and (info.unit == unit or better is None)
    assert metric_info(metrics, "top5") is None and metric_info(metrics, "seg/miou") is None


@METRICS.register_module(force=True)
class GivenErrors(BaseMetric):
    """As a user writes a metric for mmengine: an error, here 9, 4, 6 and 7 of the four epochs."""

    default_prefix = "my"

    def __init__(self, values):
        super().__init__()
        self.values = list(values)

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        return {"rmse": self.values.pop(0)}


def errors(values):
    return {"_delete_": True, "type": "GivenErrors", "values": values}


def test_less_is_better_everywhere(tiny_config, tmp_path, monkeypatch, capsys):
    """Choosing the best weights, printing, and the mark in the learning curve."""
    runner = small_runner(
        tiny_config,
        tmp_path,
        train_cfg__max_epochs=4,
        val_evaluator=errors([9.0, 4.0, 6.0, 7.0]),
        default_hooks__checkpoint={"save_best": "my/rmse", "rule": "less"},
    )
    runner.train()
    assert "Best my/rmse so far: 4.00, saved to best_my_rmse.pth" in said(capsys)
    assert runner.message_hub.runtime_info["best_score"] == 4.0
    marks = []
    monkeypatch.setattr("matplotlib.axes.Axes.annotate", lambda axes, *a, **k: marks.append(a))
    lines = training_summary(runner, 61.0)
    assert lines["score"] == "my/rmse 7.00 at the end, 4.00 at best (epoch 2)"
    assert lines["trained"] == "1 min 1 s" and lines["weights"].endswith("best_my_rmse.pth")
    assert [mark[1] for mark in marks] == [(2, 4.0)]


def test_direction_must_be_known(tiny_config, tmp_path):
    runner = small_runner(
        tiny_config, tmp_path, val_evaluator=errors([1.0]), default_hooks__checkpoint__save_best="my/rmse"
    )
    with pytest.raises(ValueError, match=r"save_best='my/rmse': it isn't known which values are better; set .*rule"):
        runner.train()


def test_nothing_to_measure(tiny_config, tmp_path, capsys):
    """NaN is printed as n/a, never the best, and null in JSON."""
    runner = small_runner(
        tiny_config,
        tmp_path,
        val_evaluator=errors([NAN, NAN]),
        test_evaluator=errors([NAN]),
        test_dataloader__num_batch_per_epoch=1,
        default_hooks__checkpoint={"save_best": "my/rmse", "rule": "greater"},
    )
    runner.train()
    lines = training_summary(runner, 1.0)
    assert lines["score"] == "my/rmse n/a at the end" and lines["weights"].endswith("epoch_2.pth")
    assert not list(tmp_path.glob("best_*"))
    runner.test()

    def refuse(constant):
        raise ValueError(constant)

    files = list(tmp_path.rglob("*.json"))
    assert len(files) == 3  # the scalars twice, and the scores of the test
    for file in files:
        for line in file.read_text().splitlines():
            json.loads(line, parse_constant=refuse)
    assert any('"my/rmse": null' in file.read_text() for file in files)


def test_detection_with_nothing_to_find():
    metric = TorchMetrics({"bbox": {"type": "DetectionScores"}})
    metric.dataset_meta = {"classes": ("ant",)}
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    metric.process(None, [{"preds": nothing | {"scores": torch.zeros(0)}, "target": nothing}])
    values = metric.evaluate(1)
    assert math.isnan(values["bbox/map"]) and metric.info("bbox/map").format(values["bbox/map"]) == "n/a"


def test_json_text():
    value = {"a": NAN, 1: [math.inf, torch.tensor([1.0, NAN])], "b": torch.tensor(2), "c": "text", "d": None}
    assert json.loads(to_json(value)) == {"a": None, "1": [None, [1.0, None]], "b": 2, "c": "text", "d": None}


def test_pictures_of_an_earlier_evaluation_stay(tmp_path):
    metric = TorchMetrics({"confusion": {"type": "MulticlassConfusionMatrix", "num_classes": 2}})
    paths = []
    for predicted in (0, 1):
        metric.metrics["confusion"].update(torch.tensor([predicted, 1]), torch.tensor([0, 1]))
        paths += draw_scores([metric], tmp_path, ("ant", "cow"))
    assert [path.name for path in paths] == ["confusion.png", "confusion-2.png"]
    assert paths[0].read_bytes() != paths[1].read_bytes()


def test_curve_without_a_metric(tmp_path):
    folder = tmp_path / "a" / "vis_data"
    folder.mkdir(parents=True)
    records = [{"loss": 1.0, "lr": 0.1, "epoch": 1, "step": 1}, {"loss": None, "lr": 0.1, "epoch": 1, "step": 2}]
    (folder / "scalars.json").write_text("\n".join(map(json.dumps, records)))
    assert draw_learning_curve(tmp_path, None).exists()


def test_random_numbers_of_a_step_depend_on_seed_rank_and_iteration():
    import random

    import numpy as np

    from visionattn.engine import StepSeedHook

    def draw(**changes):
        StepSeedHook().before_train_iter(SimpleNamespace(**{"seed": 1, "rank": 0, "iter": 5} | changes), 0)
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    first = draw()
    assert draw() == first
    for change in ({"rank": 1}, {"seed": 2}, {"iter": 6}):
        assert all(a != b for a, b in zip(draw(**change), first, strict=True)), change


@pytest.fixture
def photos(tmp_path):
    """Folders of two classes, with a file that is no picture in each split."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    for split, count in {"train": 8, "val": 4}.items():
        for name in ("ant", "bee"):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(random.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / f"{number}.png")
    (tmp_path / "photos" / "train" / "ant" / "broken.png").write_bytes(b"no picture")
    return tmp_path / "photos"


def test_unreadable_pictures_are_reported_at_the_end(tiny_config, tmp_path, photos):
    def loader(split):
        folder = {"_delete_": True, "type": "ImageFolder", "data_root": str(photos / split), "pipeline": []}
        return {"batch_size": 4, "num_batch_per_epoch": None, "dataset": folder | {"skip_unreadable": 0.1}}

    runner = small_runner(
        tiny_config,
        tmp_path / "run",
        train_dataloader=loader("train"),
        val_dataloader=loader("val"),
        model__backbone__num_classes=2,
        val_evaluator__scores={"_delete_": True, "top1": {"type": "MulticlassAccuracy", "num_classes": 2}},
    )
    runner.train()
    skipped = training_summary(runner, 1.0)["skipped"]
    assert skipped == "1 pictures of the training set that cannot be read (named in the log)"


def test_two_runs_of_one_second_have_names_of_their_own(tmp_path, monkeypatch):
    """Or the second one would write into the first one's folder of logs."""
    clock = [7]  # stands still until somebody waits
    monkeypatch.setattr(time, "strftime", lambda *_: f"20260101_{clock[0]:06d}")
    monkeypatch.setattr(time, "sleep", lambda _: clock.append(clock.pop() + 1))
    names = []
    for folder in "ab":
        config = load_config("quickstart")
        config.work_dir = str(tmp_path / folder)
        names.append(Runner.from_cfg(config).experiment_name)
    assert names[0] != names[1]
