"""The balanced network against the author's: values, places, starts."""

import pytest
import timm
import torch
from networks import create

from visionattn.plugins import BalancedMultiTaskAttention
from visionattn.testing.fixtures import authors_file, load, relative_error

NAME = "va_balanced12_bmta"


def test_golden(tmp_path):
    golden = load("bmta_balanced12_eval")
    overlay = authors_file(golden, tmp_path / "author.pth")
    model = timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=overlay).eval()
    assert sum(p.numel() for p in model.parameters()) == golden.meta["params"]
    with torch.inference_mode():
        features, stages = model.forward_intermediates(golden.input, indices=[1, 2, 3, 4])
        assert relative_error(model.forward_head(features), golden.arrays["out_0"]) < 1e-4
    for index, stage in enumerate(stages):
        assert relative_error(stage.mean((2, 3)), golden.arrays[f"feat_{index}"]) < 1e-4


def test_attention_and_drop_block_of_every_block():
    model = create(NAME, drop_block_rates=(0, 0, 0, 0.3))
    assert sum(isinstance(module, BalancedMultiTaskAttention) for module in model.modules()) == 11
    assert [model.layer1[0].drop_block.drop_prob, model.layer4[1].drop_block.drop_prob] == [0, 0.3]
    # PyTorch's own start is uniform, timm's is not.
    assert model.layer4[0].se.conv1.weight.abs().max().item() <= 512**-0.5


def test_wrong_weights_are_refused(tmp_path):
    golden = load("bmta_balanced12_eval")
    weights = {key.replace("stage4", "stage5"): value for key, value in golden.state_dict.items()}
    torch.save(weights, tmp_path / "weights.pth")
    overlay = {"file": str(tmp_path / "weights.pth")}
    with pytest.raises(ValueError, match="missing: layer4"):
        timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=overlay)
