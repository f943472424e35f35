"""The training set decides the classes of a run: validation and test follow by name."""

import pytest
from mmengine.config import Config
from PIL import Image

from visionattn.engine import Runner, TorchMetrics, load_config
from visionattn.engine.scores import SCORES
from visionattn.utils.resources import config_dir

COLOURS = {"ant": (200, 0, 0), "bee": (0, 200, 0), "cow": (0, 0, 200)}


def write(root, *names):
    for name in names:
        (root / name).mkdir(parents=True)
        for number in range(8):
            Image.new("RGB", (32, 32), COLOURS.get(name, (90, 90, 90))).save(root / name / f"{number}.png")
    return str(root)


@pytest.fixture
def config(tmp_path):
    """Trains for an epoch: three classes to train, two to validate, whose folders would be counted from 0."""
    config = load_config("quickstart")
    data = {"type": "ImageFolder", "pipeline": [dict(type="Resize", height=32, width=32)]}
    config.train_dataloader.dataset = {**data, "data_root": write(tmp_path / "train", "ant", "bee", "cow")}
    config.train_dataloader.batch_size = 8
    config.val_dataloader.dataset = {**data, "data_root": write(tmp_path / "val", "bee", "cow")}
    config.test_dataloader = config.val_dataloader
    config.train_cfg.max_epochs, config.param_scheduler = 3, []
    config.work_dir, config.visualizer = str(tmp_path / "work"), None
    return config


def test_a_validation_set_that_lacks_a_class_is_scored_by_name(config, tmp_path, capfd):
    runner = Runner.from_cfg(config)
    runner.train()
    assert runner.val_dataloader.dataset.metainfo["classes"] == ("ant", "bee", "cow")
    assert set(runner.val_dataloader.dataset.labels.tolist()) == {1, 2}
    assert runner.val_evaluator.metrics[0].dataset_meta["classes"] == ("ant", "bee", "cow")
    assert runner.message_hub.get_info("best_score") > 0.9  # counted by the folders there, half of it would be wrong
    assert "val) lacks classes of the training set: ant" in "".join(capfd.readouterr())
    config.load_from = str(tmp_path / "work" / "best_top1.pth")
    tested = Runner.from_cfg(Config({**config, "experiment_name": "again"}))
    tested.load_or_resume()
    assert tested.test()["top1"] > 0.9 and set(tested.test_dataloader.dataset.labels.tolist()) == {1, 2}


def test_a_class_that_training_does_not_have_ends_the_run_before_it_begins(config, tmp_path):
    write(tmp_path / "val", "dog")
    with pytest.raises(ValueError, match=r"val\) has 'dog', which the training set does not have"):
        Runner.from_cfg(config).train()


def test_a_run_is_not_resumed_with_other_classes(config, tmp_path):
    config.train_cfg.max_epochs = 1
    Runner.from_cfg(config).train()
    write(tmp_path / "train", "dog")
    config.train_cfg.max_epochs, config.resume, config.experiment_name = 2, True, "again"
    with pytest.raises(ValueError, match=r"begun with the classes ant, bee, cow, but the training set now has .* dog"):
        Runner.from_cfg(config).train()


def test_a_metric_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "my_metric.py").write_text(
        """
import torch
from torchmetrics import Metric
from visionattn.engine.scores import SCORES

@SCORES.register_module()
class Hits(Metric):
    def __init__(self, bonus=0):
        super().__init__()
        self.bonus = bonus
        self.add_state("hits", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, preds, target):
        self.hits += (preds.argmax(-1) == target).sum()

    def compute(self):
        return self.hits + self.bonus
"""
    )
    runtime = str(config_dir() / "_base_" / "default_runtime.py")
    scores = "dict(hits=dict(type='Hits', bonus=2))"
    (tmp_path / "config.py").write_text(
        f"_base_ = [{runtime!r}]\ncustom_imports = dict(imports=['my_metric'])\nval_evaluator = dict(scores={scores})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    try:
        metrics = TorchMetrics(**Config.fromfile(tmp_path / "config.py").val_evaluator)
        import torch

        samples = [{"preds": torch.eye(3)[n], "target": torch.tensor(n % 2)} for n in range(3)]
        metrics.process(None, samples)
        assert metrics.evaluate(3) == {"hits": 4.0}
        with pytest.raises(ValueError, match="metric 'x': Hits takes no points here; it takes bonus"):
            TorchMetrics({"x": {"type": "Hits", "points": 1}})
    finally:
        SCORES.module_dict.pop("Hits", None)
    with pytest.raises(ValueError, match="got 'DetectionScore'; did you mean DetectionScores"):
        TorchMetrics({"x": {"type": "DetectionScore"}})
