"""Whatever wraps, prefixes or spoils weights: every way to load them takes it off, or refuses in one sentence."""

import argparse
import json
import struct

import numpy as np
import pytest
import safetensors.torch
import timm
import torch

from visionattn.checkpoints import publish, read_weights
from visionattn.checkpoints.files import read_source
from visionattn.models import check_state_dict, unwrap
from visionattn.models.loading import load_fitting
from visionattn.tasks import Classifier
from visionattn.utils.files import read_checkpoint, stated_hash
from visionattn.utils.safetensors_header import MAX_HEADER

NAME = "va_resnet10n_cbam"


def network(classes=4):
    torch.manual_seed(0)
    return timm.create_model(NAME, num_classes=classes)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def training_checkpoint(path, classes=4, **more):
    """As mmengine saves a run of ours."""
    task = Classifier({"model_name": NAME, "num_classes": classes})
    task.backbone.load_state_dict(network(classes).state_dict())
    meta = {"epoch": 3, "dataset_meta": {"classes": tuple("abcdefgh"[:classes])}}
    torch.save({"meta": meta, "state_dict": task.state_dict(), "optimizer": {}, "message_hub": {}, **more}, path)
    return path


class TestPrefixes:
    @pytest.mark.parametrize(
        "prefix",
        [
            "",
            "module.",
            "_orig_mod.",
            "module._orig_mod.",
            "_orig_mod.module.",
            "backbone.",
            "module.backbone._orig_mod.",
        ],
    )
    @pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
    def test_are_taken_off_by_every_loader(self, prefix, wrapper, tmp_path):
        own = network().state_dict()
        entries = {f"{prefix}{key}": value for key, value in own.items()}
        path = tmp_path / "w.pth"
        torch.save({wrapper: entries, "epoch": 1} if wrapper else entries, path)
        overlay = {"file": str(path)}
        loaded = timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=overlay)
        assert same(loaded.state_dict(), own)
        assert same(timm.create_model(NAME, num_classes=4, checkpoint_path=path).state_dict(), own)
        weights, layout = read_source(path)
        assert same(weights, own) and (layout.wrapper, layout.prefix) == (wrapper, prefix)
        task = Classifier({"model_name": NAME, "num_classes": 4})
        task.load_weights(read_weights(path))
        assert same(task.backbone.state_dict(), own)

    def test_inside_names_too(self):
        x = torch.ones(1)
        assert unwrap({"backbone._orig_mod.a._orig_mod.b": x, "my_orig_mod.c": x}).keys() == {
            "backbone.a.b",
            "my_orig_mod.c",
        }


class TestTrainingCheckpoints:
    def test_pretrained_cfg_overlay_takes_their_classes(self, tmp_path):
        path = training_checkpoint(tmp_path / "best.pth")
        model = timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay={"file": str(path)})
        assert model.num_classes == 4 and model.pretrained_cfg["label_names"] == ("a", "b", "c", "d")
        assert same(model.state_dict(), network().state_dict())

    def test_for_other_classes_the_head_is_new(self, tmp_path, caplog):
        path = training_checkpoint(tmp_path / "best.pth")
        overlay = {"file": str(path)}
        model = timm.create_model(NAME, pretrained=True, num_classes=7, pretrained_cfg_overlay=overlay)
        assert model.num_classes == 7 and "fc.weight, fc.bias are new, for 7 classes instead of 4" in caplog.text
        own = network().state_dict()
        assert all(torch.equal(v, own[k]) for k, v in model.state_dict().items() if k[:3] != "fc.")

    def test_a_head_that_fits_is_never_dropped_in_silence(self, tmp_path):
        """timm would, where its cfg states other classes than the file has."""
        path = training_checkpoint(tmp_path / "best.pth")
        overlay = {"file": str(path), "num_classes": 1000}
        with pytest.raises(
            ValueError, match=r"best.pth has 4 classes, its pretrained_cfg says 1000: give .*num_classes=4"
        ):
            timm.create_model(NAME, pretrained=True, num_classes=4, pretrained_cfg_overlay=overlay)

    def test_tasks_load_what_fits_and_say_what_is_new(self, tmp_path):
        weights = read_weights(training_checkpoint(tmp_path / "best.pth"))
        task = Classifier({"model_name": NAME, "num_classes": 9})
        before = {key: value.clone() for key, value in task.state_dict().items()}
        with pytest.raises(ValueError, match=r"wrong shape: backbone.fc.* is \(4"):
            task.load_weights(weights)
        report = task.load_weights(weights, other_classes=True)
        assert set(report.new) == {"backbone.fc.weight", "backbone.fc.bias"} and report.loaded == len(weights) - 2
        for key, value in task.state_dict().items():
            assert torch.equal(value, before[key] if key in report.new else weights[key])
        assert "new, for other classes: backbone.fc." in str(report)

    def test_another_network_is_not_taken_for_other_classes(self):
        wider = timm.create_model("va_resnet18_cbam", num_classes=3).state_dict()
        before = network().state_dict()
        model = network()
        with pytest.raises(ValueError, match="do not fit"):
            load_fitting(model, wider, other_classes=True)
        assert same(model.state_dict(), before)


class TestValues:
    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_that_are_not_finite_are_named(self, value, tmp_path):
        state = network().state_dict()
        state["fc.bias"][1] = value
        torch.save(state, tmp_path / "w.pth")
        for load in (
            lambda: read_weights(tmp_path / "w.pth"),
            lambda: read_source(tmp_path / "w.pth"),
            lambda: timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay={"file": str(tmp_path / "w.pth")}),
        ):
            with pytest.raises(ValueError, match=r"w.pth holds NaN or infinite values in fc.bias$"):
                load()
        assert read_weights(tmp_path / "w.pth", allow_nonfinite=True).keys() == state.keys()

    def test_integers_for_floats_are_named(self, tmp_path):
        state = {
            key: value.round().long() if key == "fc.bias" else value for key, value in network().state_dict().items()
        }
        torch.save(state, tmp_path / "w.pth")
        fault = r"wrong type: fc.bias is torch.int64, the model has torch.float32"
        with pytest.raises(ValueError, match=fault):
            timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay={"file": str(tmp_path / "w.pth")})
        with pytest.raises(ValueError, match=fault):
            check_state_dict(state, network())

    @pytest.mark.parametrize(
        ("content", "fault"),
        [
            ({0: torch.ones(1)}, "keys must be names, got 0"),
            ({"state_dict": {0: torch.ones(1), 1: torch.ones(1)}}, "keys must be names, got 0, 1"),
            ({"a": torch.ones(1), "lr": 0.1}, "holds no flat weights: lr is no tensor"),
            ({"state_dict": {}}, "holds no weights"),
        ],
    )
    def test_what_is_no_state_dict(self, content, fault, tmp_path):
        torch.save(content, tmp_path / "w.pth")
        for load in (
            lambda: read_weights(tmp_path / "w.pth"),
            lambda: read_source(tmp_path / "w.pth"),
            lambda: timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay={"file": str(tmp_path / "w.pth")}),
        ):
            with pytest.raises(ValueError, match=fault):
                load()


class TestFiles:
    @pytest.mark.parametrize("name", ["best-20240101.pth", "run-12345678901234.pth"])
    def test_a_date_in_a_name_is_no_hash(self, name, tmp_path):
        torch.save(network().state_dict(), tmp_path / name)
        assert stated_hash(name) is None and len(read_checkpoint(tmp_path / name)) > 10
        assert stated_hash("w-0a345678.pth") == "0a345678"

    @pytest.mark.parametrize("old_format", [False, True])
    @pytest.mark.parametrize(
        ("thing", "name"),
        [
            (argparse.Namespace(lr=1), "argparse.Namespace"),
            (np.float64(1), "numpy"),
            (torch.nn.ReLU(), "torch.nn.modules.activation.ReLU"),
        ],
    )
    def test_refused_objects_are_named(self, thing, name, old_format, tmp_path):
        torch.save(
            {"state_dict": {"a": torch.zeros(1)}, "extra": thing},
            tmp_path / "w.pth",
            _use_new_zipfile_serialization=not old_format,
        )
        with pytest.raises(ValueError, match=rf"w.pth was refused: it holds .*{name}.*, which only running code"):
            read_checkpoint(tmp_path / "w.pth")

    def header(self, tmp_path, text, data=b"", length=None):
        path = tmp_path / "w.safetensors"
        path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
        return path

    def test_headers_are_bounded_and_checked(self, tmp_path):
        tensor = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
        good = json.dumps({"a": tensor}).encode()
        assert read_checkpoint(self.header(tmp_path, good, b"\0\0\x80?"))["a"].item() == 1
        for text, data, length, fault in (
            (b" " * (MAX_HEADER + 1), b"", None, "its header has 16,777,217 bytes, at most 16,777,216 are read"),
            (good + b" " * MAX_HEADER, b"\0" * 4, None, r"its header has 16,777,\d+ bytes, at most"),
            (b" " * 99, b"", None, "its header is invalid JSON"),
            (b"{}", b"", None, "holds no weights: its header names no tensor"),
            (b'{"__metadata__": {"a": "b"}}', b"", None, "holds no weights"),
            (b'{"__metadata__": {"a": 1}}', b"", None, "does not describe tensors"),
            (b"[1]", b"", None, "does not describe tensors"),
            (b'{"a": 1}', b"", None, "does not describe tensors"),
            (good, b"\0" * 3, None, "describes 4 bytes of weights, 3 follow"),
            (good, b"\0" * 5, None, "describes 4 bytes of weights, 5 follow"),
            (good, b"", 1 << 60, "truncated or no safetensors file"),
            (b"", b"", None, "invalid JSON"),
            (json.dumps({"a": {**tensor, "shape": [2]}}).encode(), b"\0" * 4, None, "truncated or no safetensors file"),
        ):
            with pytest.raises(ValueError, match=fault):
                read_checkpoint(self.header(tmp_path, text, data, length))
        (tmp_path / "w.safetensors").write_bytes(b"1234567")
        with pytest.raises(ValueError, match="truncated or no safetensors file: it has 7 bytes"):
            read_checkpoint(tmp_path / "w.safetensors")

    @pytest.mark.parametrize("bits", [8, 4])
    def test_published_files_fit_timms_checkpoint_path(self, tmp_path, bits):
        facts = {"task": "classification", "dataset": "x", "metrics": {}, "license": "mit", "origin": "me"}
        about = {"classes": tuple("abcd"), "mean": (0.5,) * 3, "std": (0.5,) * 3, "input_size": (3, 32, 32)}
        path = publish(network(), f"{NAME}.mine", tmp_path, facts=facts, bits=bits, **about)
        model = timm.create_model(NAME, num_classes=4, checkpoint_path=path)
        weights = read_weights(path)
        assert same(model.state_dict(), weights)
        assert path.stat().st_size < (0.15 + bits / 8) * sum(value.numel() for value in weights.values())
        with pytest.raises(ValueError, match="bits must be 4, 8 or 32, got 16"):
            publish(network(), f"{NAME}.mine", tmp_path, facts=facts, bits=16, **about)

    def test_tied_weights_are_stored(self, tmp_path):
        from visionattn.checkpoints.files import published_content

        weight = torch.randn(3, 4)
        content = published_content({"a": weight, "b": weight, "c": weight.T}, {"model": "x"})
        loaded = safetensors.torch.load(content)
        assert torch.equal(loaded["a"], weight) and torch.equal(loaded["c"], weight.T)
