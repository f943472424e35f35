"""Files of one's own add to the tables: each is written here, named in `custom_imports`, and used by its name."""

import re
import sys
from pathlib import Path

import pytest
import torch
from dense import detection_batch, segmentation_batch
from mmengine.config import Config
from mmengine.registry import MODELS

from visionattn.tasks import DECODERS, DETECTORS, HEADS, LOSS_COLLECTORS, LOSSES, Detector, Segmentor

NAME = "va_resnet10n_cbam"


@pytest.fixture(autouse=True)
def tables():
    """Leaves the tables as they were, with what detectors and segmentors add when they are imported."""
    assert Detector and Segmentor
    tables = (DECODERS, DETECTORS, HEADS, LOSS_COLLECTORS, LOSSES)
    before = [set(table.module_dict) for table in tables]
    yield
    for table, names in zip(tables, before, strict=True):
        for name in set(table.module_dict) - names:
            table.module_dict.pop(name)


@pytest.fixture
def build(tmp_path, monkeypatch):
    """Writes a user's file and a config that imports it: `build(name, file, config)` -> the model."""

    def build(name, file, config):
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, name, raising=False)
        (tmp_path / f"{name}.py").write_text(file)
        (tmp_path / "config.py").write_text(f"custom_imports = dict(imports=['{name}'])\nmodel = {config}\n")
        torch.manual_seed(0)
        return MODELS.build(Config.fromfile(tmp_path / "config.py").model)

    return build


def test_a_loss(build):
    file = """
import torch
from torch import nn
from visionattn.tasks import LOSSES

@LOSSES.register_module()
class FocalLoss(nn.Module):
    def __init__(self, ignore_index, gamma=2.0):
        super().__init__()
        self.ignore_index, self.gamma = ignore_index, gamma

    def forward(self, logits, target):
        loss = nn.functional.cross_entropy(logits, target, reduction="none", ignore_index=self.ignore_index)
        return ((1 - torch.exp(-loss)) ** self.gamma * loss).mean()
"""
    loss = dict(type="FocalLoss", gamma=1.0)
    classifier = build("my_loss", file, dict(type="Classifier", backbone=dict(model_name="va_resnet10n"), loss=loss))
    values = classifier.train()(torch.randn(2, 3, 32, 32), {"label": torch.tensor([1, 2])}, "loss")
    assert values["loss"] > 0 and classifier.loss.gamma == 1
    decoder = dict(type="FPN", decoder_pyramid_channels=16, decoder_segmentation_channels=32)
    losses = [loss, dict(type="FocalLoss", name="sharp", gamma=5.0, loss_weight=0.5)]
    config = dict(type="Segmentor", backbone=dict(model_name=NAME), decoder=decoder, num_classes=3, losses=losses)
    values = MODELS.build(config)(*segmentation_batch([(32, 32)], classes=3), "loss")
    assert set(values) == {"loss_focal", "loss_sharp"} and values["loss_focal"] > values["loss_sharp"] > 0


def test_a_detector(build):
    file = """
import torch
from torch import nn
from visionattn.tasks import DETECTORS

@DETECTORS.register_module()
class CentreDetector(nn.Module):
    '''One box for the whole picture, of the class of its mean.'''

    def __init__(self, build_maps, num_classes, width=8):
        super().__init__()
        self.maps = build_maps(levels=2)
        self.squeeze = nn.Conv2d(self.maps.channels[-1], width, 1)
        self.classify = nn.Linear(width, num_classes)

    def forward(self, images, targets=None):
        scores = self.classify(self.squeeze(self.maps(images.tensors)[-1]).mean((2, 3)))
        if self.training:
            labels = torch.stack([target["labels"][0] for target in targets])
            return {"class": nn.functional.cross_entropy(scores, labels)}
        best = scores.softmax(1).max(1)
        boxes = [torch.tensor([[0.0, 0.0, w, h]]) for h, w in images.image_sizes]
        return [dict(boxes=b, scores=s[None], labels=n[None]) for b, s, n in zip(boxes, best.values, best.indices)]
"""
    detector = dict(type="CentreDetector", width=4)
    backbone = dict(model_name="va_davit_tiny", dims=(16, 32, 64, 128), depths=(1, 1, 1, 1), num_heads=(2, 2, 4, 8))
    config = dict(type="Detector", backbone=backbone, detector=detector, num_classes=5)
    model = build("my_detector", file, config)
    inputs, samples = detection_batch([(64, 51), (45, 64)], [2, 1])
    losses = model.train()(inputs, samples, "loss")
    assert set(losses) == {"loss_class"} and losses["loss_class"].requires_grad
    result = model.eval()(inputs, [{**s, "original": {"size": (128, 102)}} for s in samples], "predict")[0]["preds"]
    assert result["boxes"].tolist() == [[0, 0, 102, 128]] and model.backbone.strides == [16, 32]
    assert [m.shape[1] for m in model(inputs)] == [64, 128]
    with pytest.raises(ValueError, match="detector CentreDetector takes no pyramid_channels here; it takes width"):
        MODELS.build({**config, "pyramid_channels": 64})


def test_a_decoder_and_a_head(build):
    file = """
import torch
from torch import nn
from visionattn.tasks import DECODERS, HEADS

@DECODERS.register_module()
class SumDecoder(nn.Module):
    def __init__(self, build_maps, num_classes, width=16):
        super().__init__()
        self.maps = build_maps(levels=3)
        self.laterals = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in self.maps.channels)
        self.classify = nn.Conv2d(width, num_classes, 1)

    def forward(self, x):
        maps = self.maps(x)
        sized = [
            nn.functional.interpolate(lateral(m), maps[0].shape[-2:])
            for lateral, m in zip(self.laterals, maps)
        ]
        return self.classify(torch.stack(sized).sum(0)), maps

@HEADS.register_module()
class OneByOne(nn.Module):
    def __init__(self, in_channels, num_classes, pooled=False):
        super().__init__()
        self.pooled = pooled
        self.layer = nn.Conv2d(in_channels, num_classes, 1)

    def forward(self, x):
        y = self.layer(x)
        return y.amax((2, 3)) if self.pooled else y
"""
    backbone = dict(model_name=NAME)
    decoder = dict(type="SumDecoder", width=8)
    auxiliary = dict(type="OneByOne", loss_weight=0.3)
    config = dict(type="Segmentor", backbone=backbone, decoder=decoder, auxiliary=auxiliary, num_classes=5)
    model = build("my_decoder", file, config)
    inputs, samples = segmentation_batch([(64, 51), (45, 64)])
    losses = model.train()(inputs, samples, "loss")
    sum(losses.values()).backward()
    assert set(losses) == {"loss_ce", "aux_loss_ce"}
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert model.eval()(inputs).shape == (2, 5, 64, 64) and model.backbone.strides == [4, 8, 16]
    head = dict(type="OneByOne", pooled=True)
    classifier = MODELS.build(dict(type="Classifier", backbone={**backbone, "num_classes": 4}, head=head))
    assert classifier.eval()(torch.randn(2, 3, 32, 32)).shape == (2, 4) and classifier.num_classes == 4
    with pytest.raises(ValueError, match=r"head needs model\.backbone\.num_classes, the number of classes"):
        MODELS.build(dict(type="Classifier", backbone=backbone, head=head))


@pytest.mark.parametrize("name", [NAME, "va_flatten_deit_tiny", "swin_tiny_patch4_window7_224"])
def test_a_head_on_any_layout(name):
    head = dict(type="PooledHead", drop_rate=0.1)
    size = {"img_size": 64} if name.startswith("swin") else {}
    model = MODELS.build(dict(type="Classifier", backbone=dict(model_name=name, num_classes=3, **size), head=head))
    assert model.eval()(torch.randn(2, 3, 64, 64)).shape == (2, 3)
    assert {key.split(".")[0] for key in model.state_dict()} == {"backbone", "head"}


def test_losses_of_layers_are_collected_and_more_can_be(build):
    file = """
import torch
from visionattn.tasks import LOSS_COLLECTORS

@LOSS_COLLECTORS.register_module()
class WeightDecay:
    def __init__(self, network, factor):
        self.network, self.factor = network, factor

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def losses(self):
        return {"norm": self.factor * sum(p.square().sum() for p in self.network.parameters() if p.ndim > 1)}
"""
    from visionattn.ops.losses import add_loss

    collectors = [dict(type="ReportedLosses", weights=dict(balance=0.5)), dict(type="WeightDecay", factor=1e-3)]
    config = dict(type="Classifier", backbone=dict(model_name="va_resnet10n"), loss_collectors=collectors)
    model = build("my_collector", file, config)
    for number, block in enumerate(model.backbone.layer1):
        block.register_forward_hook(lambda module, x, y, n=number: add_loss("balance", y.mean() * 0 + 3.0 + n))
    inputs, samples = torch.randn(2, 3, 32, 32), {"label": torch.tensor([1, 2])}
    losses = model.train()(inputs, samples, "loss")
    count = len(model.backbone.layer1)
    assert set(losses) == {"loss", "loss_balance", "loss_norm"} and losses["loss_norm"] > 0
    assert losses["loss_balance"].item() == pytest.approx(0.5 * (3 + (count - 1) / 2))
    model(inputs)  # outside a training step nobody collects
    assert model(inputs, samples, "loss")["loss_balance"].item() == losses["loss_balance"].item()
    model.loss_collectors += model.loss_collectors[-1:]
    with pytest.raises(ValueError, match=r"has a loss 'norm', as the task or another collector"):
        model(inputs, samples, "loss")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            dict(type="Classifier", backbone=dict(model_name=NAME), loss=dict(type="CrossEntropy")),
            r"loss type must be one of CrossEntropyLoss, BinaryCrossEntropy, DiceLoss, .*, got 'CrossEntropy'; did you "
            "mean CrossEntropyLoss",
        ),
        (
            dict(type="Classifier", backbone=dict(model_name=NAME), loss=dict(type="CrossEntropyLoss", smoothing=0.1)),
            "loss CrossEntropyLoss takes no smoothing here; it takes class_weights, label_smoothing, reduction",
        ),
        (
            dict(type="Classifier", backbone=dict(model_name=NAME), loss_collectors=[dict(type="Reported")]),
            "loss collector type must be one of ReportedLosses.*, got 'Reported'; did you mean ReportedLosses",
        ),
        (
            dict(type="Classifier", backbone=dict(model_name=NAME, num_classes=2), head=dict(type="Pooled")),
            "head type must be one of FCNHead, PooledHead.*, got 'Pooled'; did you mean PooledHead",
        ),
        (
            dict(type="Classifier", backbone=dict(model_name=NAME), mixup=dict(alpha=1)),
            "mixup Mixup takes no alpha here; it takes .*mixup_alpha",
        ),
    ],
    ids=str,
)
def test_unknown_names_are_answered_with_the_known_ones(config, message):
    with pytest.raises(ValueError, match=message):
        MODELS.build(config)


def test_the_examples_of_the_docs(tmp_path, monkeypatch):
    from mmengine.registry import DATASETS, METRICS, TRANSFORMS

    from visionattn.engine import (
        load_config,
        registration,  # noqa: F401  (names the types of data sets and metrics)
    )
    from visionattn.engine.scores import SCORES

    text = (Path(__file__).parents[2] / "docs" / "extending.md").read_text(encoding="utf-8")
    blocks = dict(re.findall(r"```python\n# ([\w. ]+)\n(.*?)```", text, flags=re.DOTALL))
    for name, code in blocks.items():
        monkeypatch.delitem(sys.modules, name.removesuffix(".py"), raising=False)
        (tmp_path / name.replace("config of all of them", "whole.py")).write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    try:
        (tmp_path / "my_parts.py").write_text(blocks["my_loss.py"], encoding="utf-8")
        assert load_config(tmp_path / "config.py").model.loss.type == "FocalLoss"
        LOSSES.module_dict.pop("FocalLoss")
        config = Config.fromfile(tmp_path / "whole.py")
        dataset = DATASETS.build(config.dataset)
        batch = torch.stack([dataset[n]["inputs"] for n in range(8)]).float() / 255
        samples = {"label": torch.from_numpy(dataset.labels)}
        model = MODELS.build(config.model)
        losses = model.train()(batch, samples, "loss")
        assert set(losses) == {"loss", "loss_norm"} and sum(losses.values()).isfinite()
        evaluator = METRICS.build(config.evaluator)
        evaluator.process(None, model.eval()(batch, samples, "predict"))
        assert 0 <= evaluator.evaluate(8)["hits"] <= 8
        inputs, objects = detection_batch([(64, 64), (64, 64)], [1, 2])
        detector = MODELS.build(config.detector)
        assert set(detector.train()(inputs, objects, "loss")) == {"loss_class"}
        assert len(detector.eval()(inputs, objects, "predict")[0]["preds"]["boxes"]) == 1
        segmentor = MODELS.build(config.segmentor).train()
        assert set(segmentor(*segmentation_batch([(32, 32)]), "loss")) == {"loss_focal", "loss_dice"}
    finally:
        for name in blocks:
            sys.modules.pop(name.removesuffix(".py"), None)
        for table, name in ((DATASETS, "Stripes"), (TRANSFORMS, "Negative"), (SCORES, "Hits")):
            table.module_dict.pop(name, None)
