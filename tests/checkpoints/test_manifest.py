"""The manifest says what the files are, in the form that its schema asks for."""

import copy
import json

import jsonschema
import pytest
import timm
from mmengine.registry import MODELS

import visionattn.tasks  # noqa: F401
from visionattn.engine import load_config
from visionattn.profiling.cost import count_macs
from visionattn.utils.files import sha256
from visionattn.utils.resources import checkpoint_dir

MANIFEST = json.loads((checkpoint_dir() / "manifest.json").read_text())
SCHEMA = json.loads((checkpoint_dir() / "manifest.schema.json").read_text())
ENTRIES = MANIFEST["checkpoints"]


def packaged(entry):
    return {"kind": "packaged"} in entry["sources"]


def test_keeps_to_its_schema():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(MANIFEST, SCHEMA)
    assert list(ENTRIES) == sorted(ENTRIES)
    for name, entry in ENTRIES.items():
        assert name == f"{entry['model']}.{entry['tag']}"
        assert timm.is_model(entry["model"])


@pytest.mark.parametrize(
    ("field", "value"),
    [("sha256", "123"), ("sources", []), ("sources", [{"kind": "url"}]), ("task", "chess"), ("command", None)],
)
def test_the_schema_refuses(field, value):
    name = next(name for name, entry in ENTRIES.items() if packaged(entry))
    wrong = copy.deepcopy(MANIFEST)
    wrong["checkpoints"][name][field] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, SCHEMA)


def test_packaged_files_are_what_it_says():
    files = {path.name for path in checkpoint_dir().glob("*.safetensors")}
    assert files == {entry["file"] for entry in ENTRIES.values() if packaged(entry)}
    for entry in filter(packaged, ENTRIES.values()):
        path = checkpoint_dir() / entry["file"]
        assert (path.stat().st_size, sha256(path)) == (entry["bytes"], entry["sha256"])


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if packaged(e) else pytest.mark.slow) for n, e in ENTRIES.items()]
)
def test_sizes_are_counted(name):
    entry = ENTRIES[name]
    if entry["task"] == "classification":
        model = timm.create_model(
            entry["model"],
            num_classes=entry["input"].get("num_classes"),
            device="meta",
            **entry.get("arguments", {}),
        )
        input_size = entry["input"].get("input_size", model.default_cfg["input_size"])
    else:
        config = load_config(entry["config"]).model
        model = MODELS.build({**config, "backbone": {**config.backbone, "pretrained": False}}).to("meta")
        input_size = entry["input"]["input_size"]
    assert sum(parameter.numel() for parameter in model.parameters()) == entry["params"]
    assert count_macs(model, input_size, 2 if "legacy" in entry.get("arguments", {}) else 1) == entry["macs"]
