"""ResNets with triplet attention against the official networks' recorded logits and stage means."""

import pytest
import timm
import torch

import visionattn  # noqa: F401
from visionattn.models.builder import check_state_dict
from visionattn.models.families.va_resnet import checkpoint_filter_fn
from visionattn.testing.fixtures import load, relative_error

FIXTURES = {
    "triplet_resnet18_k3_eval": ("va_resnet18_triplet", {"type": "triplet", "kernel_size": 3}),
    "triplet_resnet50_eval": ("va_resnet50_triplet", "triplet"),
}


@pytest.mark.parametrize("name", FIXTURES)
def test_golden(name):
    golden = load(name)
    architecture, plugin = FIXTURES[name]
    model = timm.create_model(architecture, plugin=plugin).eval()
    assert sum(p.numel() for p in model.parameters()) == golden.meta["params"]
    weights = checkpoint_filter_fn(golden.state_dict, model)
    check_state_dict(weights, model)
    model.load_state_dict(weights, strict=False)
    with torch.inference_mode():
        features, stages = model.forward_intermediates(golden.input, indices=[1, 2, 3, 4])
        assert relative_error(model.forward_head(features), golden.arrays["out_0"]) < 1e-4
    for index, stage in enumerate(stages):
        assert relative_error(stage.mean((2, 3)), golden.arrays[f"feat_{index}"]) < 1e-4


def test_starts_as_the_official_resnets():
    model = timm.create_model("va_resnet10n_triplet")
    assert {block.se.hw.bn.weight.item() for block in model.layer1} == {0}
    assert {block.se.cw.bn.weight.item() for block in model.layer1} == {1}
