"""A published file says all that rebuilds it: by name, by file, with what was attached, in any later process."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch

import visionattn
from visionattn import checkpoints
from visionattn.checkpoints.files import published_content, write_published
from visionattn.utils.files import read_checkpoint
from visionattn.utils.published import KEY, read_facts
from visionattn.utils.resources import USER_FOLDER

ROOT = Path(__file__).parents[2]
CLASSES = ("ant", "bee", "Käfer")
NAME = "va_resnet10n_cbam.my_photos"
ABOUT = {
    "classes": CLASSES,
    "mean": (0.5, 0.4, 0.3),
    "std": (0.2, 0.25, 0.3),
    "input_size": (3, 40, 40),
}
FACTS = {"task": "classification", "dataset": "my photos", "metrics": {"top1": 0.75}, "license": "mit", "origin": "me"}


def trained(name="va_resnet10n_cbam", attach=(), **kwargs):
    """A network that differs from a fresh one everywhere."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3, **kwargs)
    for arguments in attach:
        visionattn.attach(model, **arguments)
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.add_(0.1 * torch.rand_like(value))
    return model.eval()


def publish(model, name=NAME, folder="checkpoints", facts=(), **options):
    return checkpoints.publish(model, name, folder, facts={**FACTS, **dict(facts)}, **ABOUT, **options)


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(value, b[key]) for key, value in a.items())


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(USER_FOLDER, raising=False)


def test_loads_by_name_and_by_file_with_its_classes_and_pictures(tmp_path, monkeypatch):
    model = trained()
    path = publish(model)
    for loaded in (
        timm.create_model(NAME, pretrained=True),
        timm.create_model("va_resnet10n_cbam", pretrained=True, pretrained_cfg_overlay={"file": str(path)}),
        checkpoints.build(NAME),
        checkpoints.build(path),
        checkpoints.build(str(path)),
    ):
        assert same(loaded, model)
        cfg = loaded.pretrained_cfg
        assert (cfg["num_classes"], cfg["label_names"], cfg["input_size"]) == (3, CLASSES, (3, 40, 40))
        assert (cfg["mean"], cfg["std"], cfg["license"]) == ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3), "mit")
    assert checkpoints.load(NAME).keys() == model.state_dict().keys()
    assert checkpoints.path(NAME) == Path(path) and checkpoints.info(NAME) == checkpoints.info(path)
    assert NAME in checkpoints.list("va_resnet10n_cbam") and checkpoints.info(NAME)["metrics"] == {"top1": 0.75}
    # Renamed and put elsewhere it is the same; where VISIONATTN_CHECKPOINTS points is looked up at every call.
    (tmp_path / "mine").mkdir()
    Path(path).rename(tmp_path / "mine" / "renamed.safetensors")
    with pytest.raises(
        ValueError, match=r"no checkpoint 'va_resnet10n_cbam.my_photos': .* there are: va_resnet10n_cbam"
    ):
        timm.create_model(NAME, pretrained=True)
    monkeypatch.setenv(USER_FOLDER, str(tmp_path / "mine"))
    assert same(timm.create_model(NAME, pretrained=True), model) and same(checkpoints.build(NAME), model)


FRESH = """
import sys, timm, torch, visionattn
model = timm.create_model("va_resnet10n.mine", pretrained=True).eval()
with torch.inference_mode():
    torch.save((model(torch.load("x.pt")), model.pretrained_cfg["label_names"]), "y.pt")
"""


def test_a_fresh_process_loads_what_was_attached():
    model = trained(
        "va_resnet10n",
        [
            {"plugin": "ela_l"},
            {"plugin": {"type": "triplet", "kernel_size": 3}, "stages": -1, "where": "stage_end", "start": "paper"},
        ],
        block_args={"attn_layer": "se"},
    )
    given = {"arguments": {"block_args": {"attn_layer": "se"}}}
    publish(model, "va_resnet10n.mine", "elsewhere", given)
    x = torch.randn(2, 3, 40, 40)
    torch.save(x, "x.pt")
    environment = {**os.environ, USER_FOLDER: "elsewhere", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", FRESH], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    y, labels = torch.load("y.pt")
    with torch.inference_mode():
        torch.testing.assert_close(y, model(x))
        publish(model, "va_resnet10n.small", facts=given, bits=8)
        small = timm.create_model("va_resnet10n.small", pretrained=True).eval()
        assert labels == CLASSES and (small(x) - model(x)).abs().max() / model(x).abs().max() < 0.05


def test_networks_of_timm_and_torchvision_names_of_plugins():
    """timm refuses unknown tags of its own networks, `build` does not."""
    model = trained("resnet18", [{"plugin": visionattn.plugins.CBAM, "stages": range(2, 4), "reduction": 8}])
    path = publish(model, "resnet18.mine")
    assert read_facts(path)["modifications"] == [
        {
            "kind": "attach",
            "arguments": {
                "plugin": "cbam",
                "where": "block_end",
                "stages": [2, 3],
                "start": "identity",
                "reduction": 8,
            },
        }
    ]
    loaded = checkpoints.build("resnet18.mine")
    assert same(loaded, model) and loaded.pretrained_cfg["label_names"] == CLASSES and len(loaded.attached) == 4


def test_features_of_a_published_network_with_attention():
    model = trained("va_resnet10n", [{"plugin": "ela_l"}])
    publish(model, "va_resnet10n.mine")
    features = timm.create_model("va_resnet10n.mine", pretrained=True, features_only=True).eval()
    x = torch.randn(1, 3, 40, 40)
    with torch.inference_mode():
        assert torch.equal(features(x)[-1], model.forward_features(x))


def test_for_other_classes_the_head_is_new_and_is_named(caplog):
    model = trained()
    path = publish(model)
    loaded = timm.create_model(NAME, pretrained=True, num_classes=5)
    assert "fc.weight, fc.bias are new, for 5 classes instead of 3; all other weights are loaded from" in caplog.text
    built = checkpoints.build(path, num_classes=5)
    assert str(built.load_report).endswith("new, for other classes: fc.bias, fc.weight")
    assert built.load_report.loaded == len(model.state_dict()) - 2
    for other in (loaded, built):
        assert other.num_classes == 5
        assert all(torch.equal(v, model.state_dict()[k]) for k, v in other.state_dict().items() if k[:3] != "fc.")
    assert checkpoints.build(path, num_classes=3).load_report.new == ()


def test_publishing_again_replaces_and_the_newest_counts(caplog):
    first = publish(trained())
    copy = first.with_name("copy.safetensors")
    copy.write_bytes(first.read_bytes())
    os.utime(copy, (time.time() - 60,) * 2)
    assert checkpoints.path(NAME) == first
    model = trained()
    model.fc.bias.data.zero_()
    second = publish(model)
    assert list(Path("checkpoints").iterdir()) == [second] and second != first
    # Leftovers and damaged files beside it do no harm.
    Path("checkpoints/.part-1-x.safetensors").write_bytes(b"half")
    Path("checkpoints/broken.safetensors").write_bytes(b"broken")
    assert same(timm.create_model(NAME, pretrained=True), model)
    assert "broken.safetensors is truncated or no safetensors file" in caplog.text and "part" not in caplog.text


def test_what_cannot_be_published_is_refused_before_anything_is_written():
    model = trained()

    class Mine(torch.nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(channels, 1, 1))

        def forward(self, x):
            return x * self.weight

    own = trained("va_resnet10n")
    visionattn.attach(own, Mine)
    wrong = trained("va_resnet10n", [{"plugin": "ela_l"}])
    wrong.modifications = []
    nan = trained()
    nan.fc.weight.data[0, 0] = float("nan")
    for network, name, fault, facts in (
        (model, "va_resnet10n_cbam.../../../x", r"name must be <registered model>.<tag>, .*got 'va_.*x'", {}),
        (model, "va_resnet10n_cbam.", "name must be", {}),
        (model, "nonsense.x", "timm knows no model 'nonsense'", {}),
        (model, "va_resnet10n_cbam.digits", "is one of the packaged checkpoints; choose another tag", {}),
        (model, "va_resnet10n.x", r"va_resnet10n.x cannot be rebuilt from its name, .*not in the model: layer1", {}),
        (own, "va_resnet10n.x", r"unknown plug-in '.*Mine'", {}),
        (wrong, "va_resnet10n.x", "not in the model: layer1.0.drop_path.plugin", {}),
        (nan, NAME, r"my_photos holds NaN or infinite values in fc.weight", {}),
        (model, NAME, "its arguments is not plain data", {"arguments": {"act_layer": torch.nn.ReLU}}),
    ):
        with pytest.raises(ValueError, match=fault):
            publish(network, name, facts=facts)
    assert not Path("checkpoints").exists()
    path = publish(nan, allow_nonfinite=True)
    with pytest.raises(ValueError, match=r"holds NaN or infinite values in fc.weight"):
        timm.create_model(NAME, pretrained=True)
    with pytest.raises(ValueError, match=r"holds NaN or infinite values in fc.weight"):
        checkpoints.load(path)
    assert checkpoints.read_weights(path, allow_nonfinite=True)["fc.weight"][0, 0].isnan()


def rewritten(path, change):
    """A file with other facts."""
    facts = read_facts(path)
    change(facts)
    content = published_content(read_checkpoint(path), facts)
    other = path.with_name("other.safetensors")
    other.write_bytes(content)
    return other


HOSTILE = {
    "another package's version": (lambda f: f.update(version=2), "is of version 2; this package reads version 1"),
    "no model": (lambda f: f.pop("model"), "does not say of which model it is"),
    "a model elsewhere": (lambda f: f.update(model="hf-hub:x/y"), "is no name of a registered model"),
    "another model": (lambda f: f.update(model="va_resnet10n"), "name, model, tag and task do not belong together"),
    "weights from elsewhere": (
        lambda f: f["arguments"].update(pretrained_cfg_overlay={"url": "https://x"}),
        "the network's arguments may not set pretrained_cfg_overlay",
    ),
    "fewer names than classes": (
        lambda f: f["input"]["label_names"].pop(),
        "it has 3 classes and does not name as many",
    ),
    "not a list": (lambda f: f.update(modifications={"kind": "attach"}), "its modifications is a dict, not a list"),
    "an unknown modification": (
        lambda f: f.update(modifications=[{"kind": "os.system", "arguments": {"command": "touch hacked"}}]),
        "a modification's kind must be one of attach",
    ),
    "an unknown plug-in": (
        lambda f: f.update(modifications=[{"kind": "attach", "arguments": {"plugin": "os.system"}}]),
        "unknown plug-in 'os.system'",
    ),
    "unknown arguments": (
        lambda f: f.update(modifications=[{"kind": "attach", "arguments": {"plugin": "cbam", "x": 1}}]),
        r"cannot repeat attach\(",
    ),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_facts_of_a_file_are_data_and_checked(what):
    change, fault = HOSTILE[what]
    path = rewritten(publish(trained()), change)
    for load in (
        lambda: checkpoints.build(path),
        lambda: timm.create_model("va_resnet10n_cbam", pretrained=True, pretrained_cfg_overlay={"file": str(path)}),
    ):
        with pytest.raises(ValueError, match=fault):
            load()
    assert not Path("hacked").exists()


def test_facts_that_are_no_json():
    safetensors.torch.save_file({"a": torch.ones(1)}, "x.safetensors", {KEY: "{"})
    with pytest.raises(ValueError, match=r"x.safetensors is damaged: what it says of itself is invalid JSON"):
        checkpoints.info("x.safetensors")


def test_a_changed_byte_is_noticed_whatever_the_file_is_called():
    path = publish(trained())
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    Path("renamed.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"renamed.safetensors is damaged or was changed: its header says sha256"):
        checkpoints.load("renamed.safetensors")
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged or was changed: its name says sha256"):
        timm.create_model(NAME, pretrained=True)


def test_files_of_other_networks_and_tasks_are_named():
    path = publish(trained())
    overlay = {"file": str(path)}
    with pytest.raises(ValueError, match=r"holds weights of va_resnet10n_cbam, not of va_resnet10n$"):
        timm.create_model("va_resnet10n", pretrained=True, pretrained_cfg_overlay=overlay)
    torch.save({"a": torch.ones(1)}, "x.pth")
    with pytest.raises(ValueError, match=r"x.pth does not say what it is"):
        checkpoints.info("x.pth")
    with pytest.raises(ValueError, match=r"x.pth does not say which network it is of"):
        checkpoints.build("x.pth")
    for missing in ("gone.safetensors", "gone/x.pth", "local-dir:gone"):
        with pytest.raises(FileNotFoundError, match="no checkpoint at gone"):
            checkpoints.load(missing)


def test_names_with_a_hash_of_digits_only_get_more_of_it(monkeypatch):
    class Digest:
        def hexdigest(self):
            return "1234567890" + "a" * 54

    monkeypatch.setattr("visionattn.checkpoints.files.hashlib.sha256", lambda *_: Digest())
    path = write_published({"a": torch.ones(1)}, {"model": "x"}, "out", "x")
    assert path.name == "x-1234567890a.safetensors"


def test_everything_is_in_the_one_file():
    facts = read_facts(
        publish(trained(), facts={"pipeline": [{"type": "Resize"}], "metrics": {"a": float("nan"), "b": 1.0}})
    )
    assert facts["versions"].keys() == {"visionattn", "torch", "timm"} and facts["metrics"] == {"b": 1.0}
    assert facts["pipeline"] == [{"type": "Resize"}] and facts["params"] > 1000 and facts["macs"] > 1000
    text = json.dumps(facts)
    assert not re.search("NaN|Infinity", text)


def test_entered_into_a_manifest_that_is_there():
    Path("checkpoints").mkdir()
    Path("checkpoints/manifest.json").write_text('{"version": 2, "checkpoints": {}}')
    path = publish(trained())
    entry = json.loads(Path("checkpoints/manifest.json").read_text())["checkpoints"][NAME]
    assert entry["file"] == path.name and entry["sources"] == [{"kind": "packaged"}] and "arguments" not in entry
    assert entry["format"] == "native" and entry["reported_by"] == "this package"
    assert visionattn.checkpoints.write_cards(Path("checkpoints"), "cards.md").count(f"## {NAME}") == 1
