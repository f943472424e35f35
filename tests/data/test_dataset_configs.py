"""The data sets' configs: all of them load, build what they can without data, and the embedded ones feed a network."""

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, FUNCTIONS, METRICS, MODELS
from mmengine.runner import Runner

from visionattn import data
from visionattn.engine import registration  # noqa: F401  (registers the types that configs name)
from visionattn.utils.resources import config_dir

FOLDER = config_dir() / "_base_" / "datasets"
DENSE = sorted(path.stem for path in FOLDER.glob("*.py") if "list_collate" in Config.fromfile(path).pretty_text)


def test_all_are_there():
    assert DENSE == [
        "ade20k",
        "coco_detection",
        "coco_instance",
        "digit_scenes_detection",
        "digit_scenes_instance",
        "digit_scenes_semantic",
        "stamps_detection",
        "stamps_semantic",
        "voc_detection",
        "voc_segmentation",
    ]


@pytest.mark.parametrize("name", DENSE)
def test_every_part_can_be_built(name):
    config = Config.fromfile(FOLDER / f"{name}.py")
    assert config.data_preprocessor.pad_size_divisor == 32
    MODELS.build(config.data_preprocessor)
    for part in ("train", "val", "test"):
        loader = config[f"{part}_dataloader"]
        assert loader.dataset.type in DATASETS and loader.collate_fn.type in FUNCTIONS
        kind = data.DetectionPipeline if "detection" in name or "instance" in name else data.SegmentationPipeline
        kind(loader.dataset.pipeline)
    METRICS.build(config.val_evaluator)
    METRICS.build(config.test_evaluator)
    assert config.test_dataloader == config.val_dataloader and config.test_evaluator == config.val_evaluator
    masks = "segm" in config.val_evaluator.scores
    assert masks == bool(config.train_dataloader.dataset.get("masks") or "instance" in name)


@pytest.mark.parametrize("name", [name for name in DENSE if name.startswith("digit_scenes")])
def test_embedded_scenes_feed_a_network(name):
    config = Config.fromfile(FOLDER / f"{name}.py")
    preprocessor = MODELS.build(config.data_preprocessor)
    for part in ("train", "test"):
        loader = config[f"{part}_dataloader"]
        loader.update(num_workers=0, persistent_workers=False, batch_size=4)
        batch = preprocessor(next(iter(Runner.build_dataloader(loader, seed=0))))
        assert batch["inputs"].shape == (4, 3, 128, 128) and batch["inputs"].dtype == torch.float32
        assert len(batch["data_samples"]) == 4
        for sample in batch["data_samples"]:
            assert sample["size"] == (128, 128)
            assert ("mask" in sample) == ("semantic" in name) and ("masks" in sample) == ("instance" in name)
            assert ("original" in sample or "original_mask" in sample) == (part == "test")
