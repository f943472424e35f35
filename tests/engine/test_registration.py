"""Types that configs name are known when a config is read, although their modules are imported when they are used."""

import importlib
import json
import subprocess
import sys
from types import ModuleType

import pytest

CHECK = """
import json
from visionattn.engine import load_config
config = load_config("quickstart-detection", register=False)
from mmengine.registry import DATASETS, DATA_SAMPLERS, FUNCTIONS, HOOKS, METRICS, MODELS
def known():
    return {
        "model": config.model.type in MODELS,
        "data set": config.train_dataloader.dataset.type in DATASETS,
        "sampler": config.train_dataloader.sampler.type in DATA_SAMPLERS,
        "collate": config.train_dataloader.collate_fn.type in FUNCTIONS,
        "metric": config.val_evaluator.type in METRICS,
        "hooks": all(hook.type in HOOKS for hook in config.default_hooks.values()),
    }
before = known()
load_config("quickstart-detection")
print(json.dumps([before, known()]))
"""


def test_reading_a_config_registers_what_it_names():
    done = subprocess.run([sys.executable, "-c", CHECK], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    before, after = json.loads(done.stdout)
    assert not before["model"] and not before["metric"] and not before["data set"]
    assert all(after.values()), after


@pytest.mark.parametrize("room", ["data", "engine", "inference", "tasks", "visualization"])
def test_every_public_name_can_be_imported(room):
    module = importlib.import_module(f"visionattn.{room}")
    for name in module.__all__:
        assert not isinstance(getattr(module, name), ModuleType), f"the module {name} hides what is called so"
    with pytest.raises(AttributeError, match=f"module 'visionattn.{room}' has no attribute 'nothing'"):
        module.nothing  # noqa: B018
