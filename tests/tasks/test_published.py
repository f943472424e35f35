"""Published tasks: a detector, a segmentor and a classifier come back by name as they were, and only as data says."""

from pathlib import Path

import pytest
import torch

from visionattn import checkpoints
from visionattn.checkpoints.files import published_content
from visionattn.models.published import with_checkpoint
from visionattn.tasks import Classifier, Detector, Segmentor, from_checkpoint
from visionattn.utils.files import read_checkpoint
from visionattn.utils.published import read_facts
from visionattn.utils.resources import USER_FOLDER

PREPROCESSOR = {"type": "ImgDataPreprocessor", "mean": [127.5] * 3, "std": [100.0] * 3, "pad_size_divisor": 32}
BACKBONE = {"model_name": "va_resnet10n"}
TASKS = {
    "detection": {
        "type": "Detector",
        "backbone": BACKBONE,
        "detector": {"type": "FCOS", "score_thresh": 0.0, "detections_per_img": 5},
        "num_classes": 3,
        "pyramid_channels": 64,
        "attach": {"plugin": "ela_l"},
    },
    "segmentation": {
        "type": "Segmentor",
        "backbone": BACKBONE,
        "decoder": {"type": "FPN", "decoder_pyramid_channels": 16, "decoder_segmentation_channels": 32},
        "num_classes": 3,
        "losses": [{"type": "CrossEntropyLoss", "label_smoothing": 0.1}],
        "attach": {"plugin": {"type": "triplet", "kernel_size": 3}, "stages": [-1]},
    },
    "classification": {
        "type": "Classifier",
        "backbone": {**BACKBONE, "num_classes": 3, "stem_stride": 1},
        "attach": {"plugin": "cbam", "where": "stage_end", "stages": [1, 2]},
    },
    "classification with a head": {
        "type": "Classifier",
        "backbone": {**BACKBONE, "num_classes": 3},
        "head": {"type": "PooledHead", "drop_rate": 0.1},
        "attach": {"plugin": "ela_l"},
        "start_from": {"checkpoint": "/nowhere.pth"},
    },
}
CLASSES = {"Classifier": Classifier, "Detector": Detector, "Segmentor": Segmentor}
NAME = "va_resnet10n.mine"


def publish(kind, **facts):
    torch.manual_seed(0)
    config, alone = TASKS[kind], kind == "classification"
    arguments = {key: value for key, value in config.items() if key != "type"}
    task = CLASSES[config["type"]](**arguments, data_preprocessor=PREPROCESSOR).eval()
    with torch.no_grad():
        for value in task.state_dict().values():
            if value.is_floating_point():
                value.add_(0.05 * torch.rand_like(value))
    facts = {
        "task": kind.partition(" ")[0],
        "dataset": "scenes",
        "metrics": {"a": 0.5},
        "license": "mit",
        "origin": "me",
        "arguments": config["backbone"],
        "preprocessor": PREPROCESSOR,
        "pipeline": [{"type": "Resize", "height": 64, "width": 64}],
        **facts,
    }
    if not alone:
        facts["task_config"] = {**config, "compile": True, "backbone": {**config["backbone"], "pretrained": True}}
    network = task.backbone if alone else task
    about = {"classes": tuple("abc"), "mean": (0.5,) * 3, "std": (0.4,) * 3, "input_size": (3, 64, 64)}
    return task, checkpoints.publish(network, NAME, "checkpoints", facts=facts, **about)


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(USER_FOLDER, raising=False)


@pytest.mark.parametrize("kind", TASKS)
def test_comes_back_as_it_was(kind):
    task, path = publish(kind)
    for checkpoint in (NAME, path):
        loaded, facts = from_checkpoint(checkpoint)
        assert type(loaded) is type(task) and not loaded.training
        assert facts["input"]["label_names"] == ["a", "b", "c"] and facts["pipeline"][0]["height"] == 64
        own, again = task.state_dict(), loaded.state_dict()
        assert own.keys() == again.keys() and all(torch.equal(value, again[key]) for key, value in own.items())
        network = loaded.backbone if isinstance(loaded, Classifier) else loaded.backbone.network
        assert {place.plugin for place in network.attached}
    pictures = [torch.randint(0, 256, (3, 40, 64), dtype=torch.uint8)]
    samples = [{"size": (40, 64), "original_size": (40, 64), "original": {"size": (40, 64)}}]
    results = []
    for model in (task, loaded):
        batch = model.data_preprocessor({"inputs": pictures, "data_samples": samples})
        with torch.inference_mode():
            is_classifier = isinstance(model, Classifier)
            out = model(batch["inputs"]) if is_classifier else model(**batch, mode="predict")[0]["preds"]
        results.append(out)
    torch.testing.assert_close(*results, rtol=0, atol=0)
    if kind != "classification":
        assert type(checkpoints.build(NAME)) is type(task)
        with pytest.raises(ValueError, match=r"is a whole task \(.*\) and takes no arguments"):
            checkpoints.build(NAME, num_classes=2)
        overlay = {"file": str(path)}
        with pytest.raises(ValueError, match=r"is a whole task \(.*\), which timm does not build"):
            with_checkpoint("va_resnet10n", True, {"pretrained_cfg_overlay": overlay})


@pytest.mark.parametrize("kind", ["detection", "segmentation"])
def test_weights_for_other_classes(kind):
    task, path = publish(kind)
    config = {key: value for key, value in TASKS[kind].items() if key not in ("type", "losses")}
    other = type(task)(**{**config, "num_classes": 5})
    with pytest.raises(ValueError, match="wrong shape"):
        other.load_weights(checkpoints.load(path))
    report = other.load_weights(checkpoints.load(path), other_classes=True)
    assert report.new and all(any(part in key for part in ("cls", "segmentation_head")) for key in report.new)
    same = task.state_dict()
    assert all(torch.equal(v, same[k]) for k, v in other.state_dict().items() if k not in report.new and k in same)


def rewritten(path, change):
    facts = read_facts(path)
    change(facts)
    content = published_content(read_checkpoint(path), facts)
    path.with_name("other.safetensors").write_bytes(content)
    return path.with_name("other.safetensors")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (
            lambda f: f["task_config"].update(type="os.system"),
            "task_config's type must be one of Classifier, ",
        ),
        (lambda f: f["preprocessor"].update(type="subprocess.run"), "preprocessor's type must be one of ImgData"),
        (lambda f: f["task_config"]["backbone"].update(pretrained=True), "network's arguments may not set pretrained"),
        (
            lambda f: f["task_config"]["backbone"].update(model_name="hf-hub:x/y"),
            "backbone must be the va_resnet10n of",
        ),
        (lambda f: f["task_config"].update(custom_imports=["evil"]), "cannot build Detector from task_config"),
        (lambda f: f["task_config"].pop("detector"), "cannot build Detector from task_config"),
        (lambda f: f["task_config"].update(num_classes=7), "wrong shape"),
        (lambda f: f.pop("version"), None),
    ],
)
def test_a_file_asks_for_nothing_but_tasks(change, fault):
    _, path = publish("detection")
    if fault is None:  # the writer states the version itself
        assert read_facts(rewritten(path, change))["version"] == 1
        return
    with pytest.raises(ValueError, match=fault):
        from_checkpoint(rewritten(path, change))


def test_what_was_not_published():
    torch.save({"state_dict": {"a": torch.ones(1)}, "meta": {"cfg": "import os; os.mkdir('hacked')"}}, "best.pth")
    with pytest.raises(ValueError, match=r"best.pth was not written by `visionattn publish`"):
        from_checkpoint("best.pth")
    assert not Path("hacked").exists()
