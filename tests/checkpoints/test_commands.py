"""`publish`, `test`, `predict` and `download` by name and by file, with what was attached."""

import ast
import csv
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import visionattn
from visionattn import checkpoints
from visionattn.checkpoints import describe_pipeline
from visionattn.tasks import Classifier
from visionattn.utils.resources import USER_FOLDER, config_dir

PACKAGE = Path(visionattn.__file__).parent
CONFIG = """
_base_ = [{base!r}]
model = dict(backbone=dict(model_name="va_resnet10n", stem_stride=1), attach=dict(plugin="ela_l"))
"""
NAME = "va_resnet10n.mine"


@pytest.fixture
def published(run_cli, tmp_path, monkeypatch):
    """A config with attention, its training checkpoint, and what `publish` says of it."""
    monkeypatch.delenv(USER_FOLDER, raising=False)
    pushed = []
    monkeypatch.setattr("visionattn.checkpoints.push_to_hub", lambda *args, **how: pushed.append((*args, how)) or "URL")
    (tmp_path / "my.py").write_text(CONFIG.format(base=str(config_dir() / "classification" / "quickstart.py")))
    torch.manual_seed(0)
    task = Classifier({"model_name": "va_resnet10n", "num_classes": 10, "stem_stride": 1}, attach={"plugin": "ela_l"})
    torch.save({"state_dict": task.state_dict(), "meta": {"dataset_meta": {"classes": tuple("0123456789")}}}, "w.pth")
    options = ["--name", NAME, "--license", "mit", "--hub", "me/photos", "--private"]
    code, out, err = run_cli("publish", "my.py", "w.pth", *options)
    assert code == 0, err
    return out, pushed


def test_by_name_by_file_and_by_config_all_is_the_same(published, run_cli, tmp_path):
    out, pushed = published
    (path,) = Path("checkpoints").iterdir()
    assert pushed == [(path, "me/photos", {"private": True})] and "uploaded  URL" in out
    assert out.splitlines()[-1].split() == f"next visionattn predict PICTURES --model {NAME}".split()
    facts = checkpoints.info(NAME)
    assert facts["arguments"] == {"stem_stride": 1} and facts["modifications"][0]["arguments"]["plugin"] == "ela_l"
    score = f"{facts['metrics']['top1']:.6f}"
    plain = ["--cfg-options", "model.backbone.model_name=va_resnet10n"]
    for way in (["my.py", "w.pth"], ["my.py", NAME], ["my.py", path], ["quickstart", NAME, *plain]):
        code, out, err = run_cli("test", *way)
        assert code == 0 and score in out, err
    cv2.imwrite("a.png", np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8))
    ways = [
        ["--model", NAME],
        ["--model", path],
        ["--checkpoint", path],
        ["--config", "my.py", "--checkpoint", "w.pth"],
        ["--config", "my.py", "--checkpoint", NAME],
    ]
    tables = []
    for number, way in enumerate(ways):
        code, _, err = run_cli("predict", "a.png", *way, "--out", f"out{number}")
        assert code == 0, err
        tables.append(list(csv.reader((tmp_path / f"out{number}" / "predictions.csv").open())))
    assert all(table == tables[0] for table in tables)
    code, out, _ = run_cli("download", NAME)
    assert code == 0 and f"{NAME}: {path} (verified)" in out
    code, out, _ = run_cli("download", "--list", "va_resnet10n")
    assert code == 0 and NAME in out and path.name in out


def test_a_network_that_started_from_a_published_one_is_published_whole(published, run_cli, tmp_path):
    """What the name of the first brought along, the second says itself."""
    (tmp_path / "next.py").write_text(
        "_base_ = ['my.py']\n"
        "start = dict(_delete_=True, model_name='va_resnet10n.mine', pretrained=True, num_classes=10)\n"
        "model = dict(backbone=start, attach=None)\n"
    )
    code, _, err = run_cli("publish", "next.py", "w.pth", "--name", "va_resnet10n.next", "--license", "mit")
    assert code == 0, err
    first, second = checkpoints.info(NAME), checkpoints.info("va_resnet10n.next")
    assert [second[key] for key in ("arguments", "modifications", "metrics")] == [
        first[key] for key in ("arguments", "modifications", "metrics")
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "gone.safetensors"], "no checkpoint at gone.safetensors"),
        (["--model", "va_resnet10n_cbam.gone"], "no checkpoint 'va_resnet10n_cbam.gone', neither packaged nor in"),
        (["--model", "w.pth"], "w.pth does not say which network it is of: give"),
    ],
)
def test_predict_refuses(arguments, message, run_cli):
    torch.save({"state_dict": {"a": torch.ones(1)}}, "w.pth")
    cv2.imwrite("a.png", np.zeros((8, 8, 3), np.uint8))
    code, _, err = run_cli("predict", "a.png", *arguments)
    assert code == 2 and message in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("pipeline", "expected"),
    [
        ([{"type": "Resize", "height": 32, "width": 32}], ("bilinear", 1.0, "squash")),
        (
            [{"type": "SmallestMaxSize", "max_size": 256, "interpolation": 2}, {"type": "CenterCrop", "height": 224}],
            ("bicubic", 0.875, "center"),
        ),
        ([{"type": "FitResize", "short": 512, "long": 2048}], ("bilinear", 1.0, "center")),
        ([], ("bilinear", 1.0, "center")),
    ],
)
def test_pipelines_in_timms_words(pipeline, expected):
    assert tuple(describe_pipeline(pipeline).values()) == expected


@pytest.mark.parametrize("room", ["checkpoints", "utils"])
def test_texts_are_utf8_whatever_the_locale(room):
    """Without an encoding Python takes the locale's."""
    for path in (PACKAGE / room).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                needed = {"read_text": 1, "write_text": 2}.get(node.func.attr)
                given = len(node.args) + any(keyword.arg == "encoding" for keyword in node.keywords)
                assert needed is None or given >= needed, f"{path}:{node.lineno}"
