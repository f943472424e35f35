"""Exported files: what other programs get from them is what the predictor says; nothing else is left behind."""

import json

import onnxruntime
import pytest
import timm
import torch
from mmengine.registry import MODELS
from torch import nn

from visionattn.data import SyntheticDigits
from visionattn.engine import load_config
from visionattn.inference import Predictor, load_network
from visionattn.inference.exporting import export_network
from visionattn.inference.parity import compare

NAMES = {
    "classification": "va_resnet10n_cbam.digits",
    "detection": "va_resnet10n_cbam.digit_scenes_fcos",
    "segmentation": "va_resnet10n_cbam.digit_scenes_deeplabv3plus",
}
slow = pytest.mark.slow


@pytest.fixture(scope="module")
def scene():
    """Another scene than the one that the export compares with."""
    data = SyntheticDigits(split="test", task="detection", size=128, pipeline=[], length=4)
    return data[3]["inputs"].permute(1, 2, 0).contiguous().numpy()


def run(path, x):
    """What a program without this package gets from a file, by name, and what the file says of itself."""
    if path.suffix == ".pt2":
        extra = {"metadata.json": ""}
        program = torch.export.load(path, extra_files=extra).module()
        facts = json.loads(extra["metadata.json"])
        with torch.inference_mode():
            outputs = program(x)
        return dict(zip(facts["outputs"], outputs if isinstance(outputs, tuple) else (outputs,), strict=True)), facts
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    assert given.name == "input"
    stored = session.get_modelmeta().custom_metadata_map
    facts = {
        key: value if key in ("task", "name", "dtype", "made_by") else json.loads(value)
        for key, value in stored.items()
    }
    assert [output.name for output in session.get_outputs()] == facts["outputs"]
    outputs = session.run(None, {"input": x.numpy()})
    return dict(zip(facts["outputs"], map(torch.from_numpy, outputs), strict=True)), facts


def prepared(facts, image):
    """A picture by what the file says, `(1, 3, H, W)`."""
    mean, std = (torch.tensor(facts[key])[:, None, None] for key in ("mean", "std"))
    return ((torch.from_numpy(image).permute(2, 0, 1) / 255 - mean) / std)[None].contiguous()


@pytest.mark.parametrize("format", ["onnx", "pt2"])
def test_classifier(format, tmp_path, scene):
    done = export_network(NAMES["classification"], format=format, out=tmp_path / f"a.{format}", dynamic=True)
    assert done.facts["dynamic"] == ["batch", "height", "width"] and len(done.parity) == 3
    piece = scene[:32, :32].copy()
    _, facts = run(done.path, torch.zeros(1, 3, 32, 32))
    assert facts["task"] == "classification" and facts["classes"] == list("0123456789") and facts["size"] == [32, 32]
    outputs, _ = run(done.path, prepared(facts, piece).repeat(4, 1, 1, 1))
    network = Predictor(NAMES["classification"]).network
    (expected,) = network.predict([network.prepare(piece, "piece")])
    torch.testing.assert_close(outputs["logits"].softmax(-1)[3], expected.detach(), atol=1e-5, rtol=1e-4)
    assert run(done.path, torch.zeros(2, 3, 48, 64))[0]["logits"].shape == (2, 10)
    assert [path.name for path in tmp_path.iterdir()] == [f"a.{format}"]


@pytest.mark.parametrize("format", ["onnx", "pt2"])
def test_detector(format, tmp_path, scene):
    done = export_network(NAMES["detection"], format=format, out=tmp_path / f"a.{format}", dynamic=True)
    assert done.facts["dynamic"] == ["batch"] and done.compared
    _, facts = run(done.path, torch.zeros(1, 3, 128, 128))
    assert facts["task"] == "detection" and facts["outputs"] == ["boxes", "scores", "labels", "valid"]
    x = prepared(facts, scene)
    outputs, _ = run(done.path, torch.cat([torch.zeros_like(x), x]))
    (expected,) = Predictor(NAMES["detection"], score=0.5)(scene)
    there = outputs["valid"][1] & (outputs["scores"][1] >= 0.5)
    assert int(there.sum()) == len(expected.boxes) > 2
    torch.testing.assert_close(outputs["boxes"][1][there], torch.from_numpy(expected.boxes), atol=1e-3, rtol=0)
    assert outputs["labels"][1][there].tolist() == expected.labels.tolist()


@pytest.mark.parametrize("format", ["onnx", "pt2"])
def test_segmentor(format, tmp_path, scene):
    done = export_network(NAMES["segmentation"], format=format, out=tmp_path / f"a.{format}")
    _, facts = run(done.path, torch.zeros(1, 3, 128, 128))
    outputs, _ = run(done.path, prepared(facts, scene))
    (expected,) = Predictor(NAMES["segmentation"])(scene)
    assert (outputs["logits"].argmax(1)[0].numpy() == expected.mask).mean() > 0.9999
    assert len(facts["classes"]) == 11 and facts["dynamic"] == []


@pytest.mark.parametrize("format", ["onnx", "pt2"])
@pytest.mark.parametrize("task", ["classification", pytest.param("detection", marks=slow), "segmentation"])
def test_half(task, format, tmp_path):
    done = export_network(NAMES[task], format=format, out=tmp_path / f"a.{format}", half=True)
    outputs, facts = run(done.path, torch.zeros(1, 3, *done.facts["size"], dtype=torch.float16))
    assert facts["dtype"] == "float16" and all("tolerance 5e-02" in line for line in done.parity)
    assert outputs[facts["outputs"][0]].dtype == torch.float32
    weights = sum(p.nbytes for p in load_network(NAMES[task]).module.parameters())
    assert done.path.stat().st_size < 0.75 * weights + 800_000


@pytest.fixture
def trained(tmp_path):
    """Writes what training would have: `trained(config, changes) -> (config file, checkpoint)`."""

    def make(name, **changes):
        path = tmp_path / "mine.py"
        path.write_text(f'_base_ = ["visionattn::{name}"]\n' + "".join(f"{k} = {v!r}\n" for k, v in changes.items()))
        config = load_config(path)
        config.model.backbone.pretrained = False
        torch.manual_seed(0)
        task = MODELS.build({**config.model, "data_preprocessor": config.data_preprocessor})
        for parameter in task.detector.parameters():  # so that no two scores are equal
            parameter.data.add_(torch.randn_like(parameter), alpha=0.02)
        torch.save({"state_dict": task.state_dict(), "meta": {}}, tmp_path / "mine.pth")
        return path, tmp_path / "mine.pth"

    return make


FEW = {
    "rpn_pre_nms_top_n_test": 50,
    "rpn_post_nms_top_n_test": 20,
    "box_detections_per_img": 7,
    "box_score_thresh": 0.05,
}


@pytest.mark.parametrize("format", [pytest.param("onnx", marks=slow), "pt2"])
def test_instances_from_a_config_and_a_checkpoint(format, tmp_path, trained):
    files = trained("detection/mask-rcnn_resnet10n-cbam_8-4e_digit-scenes", model={"detector": FEW})
    done = export_network(*files, format=format, out=tmp_path / f"a.{format}", size=(64, 96), dynamic=True)
    outputs, facts = run(done.path, torch.zeros(3, 3, 64, 96))
    assert facts["outputs"] == ["boxes", "scores", "labels", "valid", "masks"] and facts["size"] == [64, 96]
    assert outputs["masks"].shape == (3, 7, 28, 28) and done.compared and "masks by" in done.parity[0]


@pytest.mark.parametrize("format", [pytest.param("onnx", marks=slow), "pt2"])
@pytest.mark.parametrize("kind", ["faster-rcnn", "retinanet"])
def test_other_detectors(kind, format, tmp_path, trained):
    few = FEW if kind == "faster-rcnn" else {"score_thresh": 0.005, "topk_candidates": 50, "detections_per_img": 7}
    files = trained(f"detection/{kind}_resnet10n-cbam_8-4e_digit-scenes", model={"detector": few})
    done = export_network(*files, format=format, out=tmp_path / f"a.{format}", size=64)
    assert done.compared and done.parity[0].split(": ")[1].startswith("7 of 7 objects")


def test_training_checkpoint_of_a_classifier(tmp_path):
    torch.manual_seed(0)
    weights = timm.create_model("va_resnet10n_ela_b", num_classes=4).state_dict()
    torch.save({"state_dict": {f"backbone.{key}": value for key, value in weights.items()}}, tmp_path / "a.pth")
    done = export_network("va_resnet10n_ela_b", tmp_path / "a.pth", format="pt2", out=tmp_path / "a.pt2", size=(32, 48))
    assert run(done.path, torch.zeros(1, 3, 32, 48))[0]["logits"].shape == (1, 4)


def test_sizes_stay_closed_where_the_network_has_one(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=3)
    done = export_network(model, format="pt2", out=tmp_path / "a.pt2", dynamic=True, size=32)
    assert done.facts["dynamic"] == ["batch"]
    assert run(done.path, torch.zeros(5, 3, 32, 32))[0]["logits"].shape == (5, 3)


class Fickle(nn.Module):
    """Computes something else when it is exported."""

    num_classes = 2
    pretrained_cfg = {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3}  # noqa: RUF012
    default_cfg = pretrained_cfg

    def __init__(self, fault="number"):
        super().__init__()
        self.fault = fault
        self.linear = nn.Linear(3, 2)

    def forward(self, x):
        y = self.linear(x.mean((2, 3)))
        if torch.compiler.is_exporting():
            if self.fault == "kind":
                raise RuntimeError("no graph of this\nand much more")
            y = y * (1.01 if self.fault == "number" else torch.nan)
        return y


@pytest.mark.parametrize("fault", ["number", "nan"])
@pytest.mark.parametrize("format", ["onnx", "pt2"])
def test_lost_parity_is_an_error_and_leaves_nothing(fault, format, tmp_path):
    with pytest.raises(ValueError, match="computes something else, and is not kept"):
        export_network(Fickle(fault), format=format, out=tmp_path / f"a.{format}", dynamic=True)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported_is_said_in_a_line(tmp_path):
    with pytest.raises(ValueError, match=r"^fickle: torch.export cannot follow it: no graph of this$"):
        export_network(Fickle("kind"), format="pt2", out=tmp_path / "a.pt2")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"format": "tflite"}, "format must be one of onnx, pt2, got 'tflite'"),
        ({"size": 0}, "size must be a number or"),
        ({"size": (1, 2, 3)}, "size must be a number or"),
    ],
)
def test_wrong_arguments(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_network(NAMES["classification"], **{"format": "pt2", "out": tmp_path / "a.pt2", **arguments})


def test_numbers_are_compared_by_the_largest():
    expected = [torch.tensor([100.0, 0.0]), torch.tensor([1.0])]

    def result(*changes, dtype=torch.float32):
        found = [value + change for value, change in zip(expected, changes, strict=True)]
        return compare(found, expected, ["logits", "extra"], dtype, 32)

    assert result(0, 0.09).agrees and not result(0, 0.11).agrees  # a thousandth of 100
    assert result(0, 0.09).text.startswith("largest difference 9.0e-02, 9.0e-04 of the largest output (tolerance 1e-03")
    assert result(0, 4.9, dtype=torch.float16).agrees and not result(5.1, 0, dtype=torch.float16).agrees
    assert not result(torch.nan, 0).agrees
    assert not compare(expected[:1], expected, ["logits", "extra"], torch.float32, 32).agrees


def test_objects_are_compared_one_by_one():
    boxes = torch.tensor([[[0.0, 0, 9, 9], [0, 0, 9, 9], [20, 20, 30, 30]]])
    objects = {
        "boxes": boxes,
        "scores": torch.tensor([[0.9, 0.9, 0.5]]),
        "labels": torch.tensor([[1, 2, 1]]),
        "valid": torch.tensor([[True, True, True]]),
    }

    def result(dtype=torch.float32, **changes):
        return compare(list({**objects, **changes}.values()), list(objects.values()), list(objects), dtype, 100)

    assert result().agrees and result().text.startswith("3 of 3 objects")
    order = [1, 0, 2]  # of two equal scores
    assert result(boxes=boxes[:, order], labels=objects["labels"][:, order]).agrees
    assert not result(labels=torch.tensor([[1, 1, 1]])).agrees
    assert not result(scores=torch.tensor([[0.9, 0.9, 0.49]])).agrees
    assert not result(boxes=boxes + 0.2).agrees and result(torch.float16, boxes=boxes + 0.2).agrees
    assert not result(valid=torch.tensor([[True, True, False]])).agrees
    assert not result(boxes=boxes * torch.nan).agrees


class TestCommand:
    def test_writes_a_file_and_says_what_it_is(self, run_cli, tmp_path):
        code, out, _ = run_cli("export", NAMES["classification"], "--format", "pt2", "--size", "32")
        assert code == 0 and "parity  the loaded program" in out and "of the largest output" in out
        assert (tmp_path / f"{NAMES['classification']}.pt2").is_file() and "open: nothing" in out
        code, _, error = run_cli("export", NAMES["classification"], "--format", "pt2")
        assert code == 2 and "exists already" in error

    def test_missing_package_is_named(self, run_cli, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
        code, _, error = run_cli("export", NAMES["classification"], "--format", "onnx")
        assert (
            code == 2 and len(error.splitlines()) == 1 and "onnxruntime, which is not installed: pip install" in error
        )

    def test_wrong_size(self, run_cli):
        code, _, error = run_cli("export", NAMES["classification"], "--format", "pt2", "--size", "1", "2", "3")
        assert code == 2 and "--size must be one number or height and width" in error
