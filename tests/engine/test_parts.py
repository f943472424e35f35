"""The parts that mmengine is given: metrics, mixed precision, parameter groups, the task, the console, the report."""

import json
import logging

import pytest
import torch
from mmengine.registry import METRICS
from torch import nn

from visionattn.engine import (
    AutocastOptimWrapper,
    TimmOptimWrapperConstructor,
    TorchMetrics,
    draw_learning_curve,
    load_config,
    read_scalars,
)
from visionattn.tasks import Classifier

ACCURACY = {"type": "MulticlassAccuracy", "num_classes": 3, "average": "micro"}
PER_CLASS = {"type": "MulticlassAccuracy", "num_classes": 3, "average": None}


def samples(predicted, target):
    return [
        {"preds": nn.functional.one_hot(torch.tensor(p), 3).float(), "target": torch.tensor(t)}
        for p, t in zip(predicted, target, strict=True)
    ]


class TestMetrics:
    def test_counts_over_batches_and_drops_the_padding(self):
        metric = METRICS.build({"type": "TorchMetrics", "scores": {"top1": ACCURACY, "recall": PER_CLASS}})
        metric.dataset_meta = {"classes": ("a", "b", "c")}
        metric.process(None, samples([0, 1], [0, 1]))
        metric.process(None, samples([2, 2], [1, 2]))
        # The last sample is the padding of a sampler: the data set has three.
        assert metric.evaluate(3) == pytest.approx({"top1": 2 / 3, "recall/a": 1, "recall/b": 0.5, "recall/c": 0})
        metric.process(None, samples([1], [1]))
        assert metric.evaluate(1)["top1"] == 1

    def test_unknown_metric_or_argument(self):
        with pytest.raises(ValueError, match="metric 'top1': type must be a class of torchmetrics, got 'Accurracy'"):
            TorchMetrics({"top1": {"type": "Accurracy"}})
        with pytest.raises(ValueError, match="metric 'top1': MulticlassAccuracy"):
            TorchMetrics({"top1": {"type": "MulticlassAccuracy", "num_classes": -1}})


class TestMixedPrecision:
    def build(self, model, **kwargs):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return AutocastOptimWrapper(optimizer=optimizer, **kwargs)

    def test_bfloat16_on_the_cpu(self):
        model = nn.Linear(4, 2)
        wrapper = self.build(model, clip_grad={"max_norm": 1.0}, accumulative_counts=2)
        wrapper.initialize_count_status(model, 0, 4)
        before = model.weight.detach().clone()
        for step in range(2):
            with wrapper.optim_context(model):
                out = model(torch.randn(3, 4))
                assert out.dtype == torch.bfloat16
            wrapper.update_params(out.float().square().sum())
            assert torch.equal(model.weight, before) == (step == 0)

    def test_state_comes_back_with_and_without_a_scaler(self):
        model = nn.Linear(4, 2)
        wrapper = self.build(model)
        state = wrapper.state_dict()
        assert "loss_scaler" in state
        wrapper.load_state_dict(state)
        wrapper.load_state_dict({key: value for key, value in state.items() if key != "loss_scaler"})

    def test_wrong_dtypes(self):
        with pytest.raises(ValueError, match="dtype must be 'bfloat16' or 'float16', got 'float8'"):
            self.build(nn.Linear(1, 1), dtype="float8")
        if not torch.cuda.is_available():
            with pytest.raises(ValueError, match="float16 training needs a GPU"):
                self.build(nn.Linear(1, 1), dtype="float16")


class TestParameterGroups:
    def groups(self, paramwise=None, **optimizer):
        model = Classifier({"model_name": "va_resnet10n_cbam"})
        model.extra = nn.Linear(3, 3)
        config = {"optimizer": {"type": "AdamW", "lr": 1.0, "weight_decay": 0.1, **optimizer}}
        wrapper = TimmOptimWrapperConstructor(config, paramwise)(model)
        names = {id(p): name for name, p in model.named_parameters()}
        return {names[id(p)]: group for group in wrapper.optimizer.param_groups for p in group["params"]}, len(names)

    def test_weight_decay_spares_scales_and_biases(self):
        groups, count = self.groups()
        assert len(groups) == count
        assert groups["backbone.layer1.0.conv1.weight"]["weight_decay"] == 0.1
        assert groups["backbone.layer1.0.bn1.weight"]["weight_decay"] == 0
        assert groups["extra.bias"]["weight_decay"] == 0 and groups["extra.weight"]["weight_decay"] == 0.1

    def test_layer_decay(self):
        groups, count = self.groups({"layer_decay": 0.5})
        assert len(groups) == count
        rates = [
            groups[f"backbone.{name}.weight"]["lr"] for name in ("conv1.0", "layer1.0.conv1", "layer4.0.conv1", "fc")
        ]
        assert rates == sorted(rates) and rates[-1] == 1 and rates[0] == 0.5**5
        assert groups["extra.weight"]["lr"] == 1

    def test_timms_optimisers(self):
        groups, _ = self.groups(type="TimmOptimizer", opt="lamb")
        assert groups["extra.weight"]["lr"] == 1

    def test_wrong_arguments(self):
        with pytest.raises(ValueError, match=r"layer_decay must lie in \(0, 1\], got 2"):
            self.groups({"layer_decay": 2})
        with pytest.raises(ValueError, match="knows only layer_decay, got bias_lr_mult"):
            self.groups({"bias_lr_mult": 2})


BATCH = {"label": torch.tensor([1, 2, 0]), "index": torch.arange(3)}


class TestClassifier:
    def build(self, **kwargs):
        return Classifier({"model_name": "va_resnet10n_cbam", "num_classes": 3}, **kwargs)

    def test_channels_last(self):
        plain, other = self.build().eval(), self.build(channels_last=True).eval()
        other.load_weights(plain.state_dict())
        for name, parameter in other.named_parameters():
            assert parameter.ndim < 4 or parameter.is_contiguous(memory_format=torch.channels_last), name
        layouts = []
        other.backbone.layer3.register_forward_hook(
            lambda module, inputs, out: layouts.append(out.is_contiguous(memory_format=torch.channels_last))
        )
        x = torch.randn(3, 3, 32, 32)
        torch.testing.assert_close(other(x), plain(x))
        assert layouts == [True]

    def test_modes(self):
        model = self.build().eval()
        x = torch.randn(3, 3, 32, 32)
        logits = model(x)
        assert logits.shape == (3, 3)
        assert model(x, BATCH, "loss")["loss"] == nn.functional.cross_entropy(logits, BATCH["label"])
        predictions = model(x, BATCH, "predict")
        torch.testing.assert_close(torch.stack([p["preds"] for p in predictions]), logits.softmax(-1))
        assert [int(p["target"]) for p in predictions] == [1, 2, 0]
        with pytest.raises(ValueError, match="mode must be"):
            model(x, BATCH, "los")

    def test_mixup_needs_even_batches(self):
        model = self.build(mixup={"mixup_alpha": 1.0}, loss={"type": "BinaryCrossEntropy", "smoothing": 0.1})
        with pytest.raises(ValueError, match=r"even size, got 3: set train_dataloader\.drop_last=True"):
            model(torch.randn(3, 3, 32, 32), BATCH, "loss")
        even = {key: value[:2] for key, value in BATCH.items()}
        assert model(torch.randn(2, 3, 32, 32), even, "loss")["loss"].isfinite()

    def test_starting_a_run_keeps_pretrained_weights(self):
        """mmengine calls init_weights of every child, which would start timm's network anew."""
        model = self.build()
        before = {key: value.clone() for key, value in model.state_dict().items()}
        model.init_weights()
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())

    def test_plugin_attached_by_config(self):
        torch.manual_seed(0)
        plain = Classifier({"model_name": "resnet18", "num_classes": 3}).eval()
        model = Classifier(
            {"model_name": "resnet18", "num_classes": 3}, attach={"plugin": "ela_l", "stages": -1}
        ).eval()
        model.load_state_dict(plain.state_dict(), strict=False)
        assert [place.name for place in model.backbone.attached] == [
            "layer4.0.drop_path.plugin",
            "layer4.1.drop_path.plugin",
        ]
        x = torch.randn(2, 3, 64, 64)
        assert torch.equal(model(x), plain(x))

    def test_compiled_network_keeps_its_keys(self):
        model = self.build(compile={"backend": "eager"})
        assert "backbone.fc.weight" in model.state_dict()
        assert model(torch.randn(1, 3, 32, 32)).shape == (1, 3)


def test_configs_are_found_by_name_and_by_path(tmp_path):
    from visionattn.utils.resources import config_dir

    by_name, by_folder = load_config("quickstart"), load_config("classification/quickstart.py")
    by_path = load_config(config_dir() / "classification" / "quickstart.py", {"train_cfg.max_epochs": 2})
    assert by_name.model == by_folder.model == by_path.model and by_path.train_cfg.max_epochs == 2


def test_scalars_of_a_resumed_run_count_once(tmp_path):
    for run, (start, stop) in {"a": (1, 5), "b": (3, 9)}.items():
        folder = tmp_path / run / "vis_data"
        folder.mkdir(parents=True)
        lines = [json.dumps({"loss": float(ord(run)), "lr": 0.1, "epoch": 1, "step": s}) for s in range(start, stop)]
        lines += [json.dumps({"top1": 0.5, "step": 1}), '{"top1": 0.']
        (folder / "scalars.json").write_text("\n".join(lines))
    train, evaluations = read_scalars(tmp_path)
    assert [r["step"] for r in train] == list(range(1, 9))
    assert [chr(int(r["loss"])) for r in train] == ["a", "a", *"bbbbbb"]
    assert [r["top1"] for r in evaluations] == [0.5]
    assert draw_learning_curve(tmp_path, "top1").read_bytes().startswith(b"\x89PNG")
    assert draw_learning_curve(tmp_path / "a" / "vis_data", "top1") is None


def test_console_is_quiet_but_the_log_is_not(tiny_config, tmp_path, capsys):
    from visionattn.engine import Runner

    cfg = load_config(tiny_config)
    cfg.work_dir = str(tmp_path)
    runner = Runner.from_cfg(cfg)
    assert "System environment" not in capsys.readouterr().out
    assert "System environment" in next(tmp_path.glob("*/*.log")).read_text()
    runner.logger.log(logging.WARNING, "a\nb\nc\nd")
    assert "a\nb\nc\nd" in capsys.readouterr().out
