"""Every checkpoint that travels with the package loads by name and is as good as the manifest says."""

import json

import pytest
import timm

import visionattn  # noqa: F401
from visionattn.data import FashionMNIST
from visionattn.utils.resources import checkpoint_dir, read_manifest

PACKAGED = {name: entry for name, entry in read_manifest().items() if {"kind": "packaged"} in entry["sources"]}
CLASSIFIERS = [name for name, entry in PACKAGED.items() if entry["task"] == "classification"]
BY_DEFAULT = "va_resnet10n_cbam.digits"


def test_all_together_are_small():
    assert sum(path.stat().st_size for path in checkpoint_dir().glob("*.safetensors")) <= 12_000_000


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_load_by_name(name):
    assert name in timm.list_pretrained("va_*")
    model = timm.create_model(name, pretrained=True)
    cfg, stated = model.pretrained_cfg, PACKAGED[name]["input"]
    assert model.num_classes == len(cfg["label_names"]) == stated["num_classes"]
    assert list(cfg["input_size"]) == stated["input_size"]
    state = model.state_dict()
    assert all(value.isfinite().all() for value in state.values())
    norms = [value for key, value in state.items() if key.endswith("running_mean")]
    assert not norms or any(value.any() for value in norms), "weights of a network that was never trained"


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n == BY_DEFAULT else pytest.mark.slow) for n in PACKAGED])
def test_is_as_good_as_the_manifest_says(name, run_cli, tmp_path):
    entry = PACKAGED[name]
    if entry["dataset"] == "FashionMNIST":
        try:
            FashionMNIST("test", [], download=False)
        except FileNotFoundError:
            pytest.skip("Fashion-MNIST is not on this machine: apt install dataset-fashion-mnist")
    command = entry["command"].split()
    assert command[:2] == ["visionattn", "test"]
    code, _, error = run_cli(*command[1:], "--out", "metrics.json")
    assert code == 0, error
    # The manifest has COCO's -1 where there was nothing to measure; JSON of today has null.
    found = json.loads((tmp_path / "metrics.json").read_text())
    measured = {key: -1.0 if value is None else value for key, value in found.items()}
    assert measured == pytest.approx(entry["metrics"], abs=1e-9)
