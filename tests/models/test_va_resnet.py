"""ResNets with plug-ins in their blocks against the authors' networks, and their checkpoint formats."""

import pytest
import timm
import torch

import visionattn  # noqa: F401
from visionattn.plugins import CBAM
from visionattn.testing.fixtures import authors_file, load, relative_error

SMALL = {"stem_stride": 1, "num_classes": 10}


@pytest.mark.parametrize(
    ("name", "fixture", "arguments"),
    [
        ("va_resnet50_cbam", "cbam_resnet50_eval", {}),
        ("va_resnet18_cbam", "cbam_resnet18_cifar_eval", SMALL),
        ("va_resnet18_triplet", "triplet_resnet18_k3_eval", {"plugin": {"type": "triplet", "kernel_size": 3}}),
        ("va_resnet50_triplet", "triplet_resnet50_eval", {}),
    ],
)
def test_golden(name, fixture, arguments, tmp_path):
    golden = load(fixture)
    overlay = authors_file(golden, tmp_path / "author.pth") | {"num_classes": arguments.get("num_classes", 1000)}
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **arguments).eval()
    with torch.inference_mode():
        features, stages = model.forward_intermediates(golden.input, indices=[1, 2, 3, 4])
        assert relative_error(model.forward_head(features), golden.arrays["out_0"]) < 1e-4
    for index, stage in enumerate(stages):
        assert relative_error(stage.mean((2, 3)), golden.arrays[f"feat_{index}"]) < 1e-4
    assert sum(p.numel() for p in model.parameters()) == golden.meta["params"]


def test_weights_load_flat_as_well(tmp_path):
    golden = load("cbam_resnet18_cifar_eval")
    torch.save(golden.state_dict, tmp_path / "flat.pth")
    overlay = {"file": str(tmp_path / "flat.pth"), "num_classes": 10}
    model = timm.create_model("va_resnet18_cbam", pretrained=True, pretrained_cfg_overlay=overlay, **SMALL).eval()
    with torch.inference_mode():
        assert relative_error(model(golden.input), golden.arrays["out_0"]) < 1e-4


@pytest.mark.parametrize(
    ("name", "params"), [("va_resnet18_cbam", 11_779_392), ("va_resnet50_cbam", 28_089_624)], ids=["18", "50"]
)
def test_published_sizes(name, params):
    assert sum(p.numel() for p in timm.create_model(name, device="meta").parameters()) == params


def test_starts_as_the_papers_do():
    model = timm.create_model("va_resnet18_cbam")
    for block in (block for stage in (model.layer1, model.layer4) for block in stage):
        assert block.se.spatial_gate.bn.weight.item() == 0
        assert block.bn2.weight.min() == 1  # the official code does not start residual branches at zero
        assert not block.se.channel_gate.fc1.bias.any()
    model = timm.create_model("va_resnet10n_triplet")
    assert {block.se.hw.bn.weight.item() for block in model.layer1} == {0}
    assert {block.se.cw.bn.weight.item() for block in model.layer1} == {1}


def test_plugin_can_be_configured():
    model = timm.create_model("va_resnet18_cbam", plugin={"type": "cbam", "reduction": 4, "no_spatial": True})
    assert model.layer1[0].se.channel_gate.fc1.out_features == 16
    with pytest.raises(ValueError, match=r"'cbamm'; there are: .*cbam, "):
        timm.create_model("va_resnet18_cbam", plugin="cbamm")
    with pytest.raises(ValueError, match="stem_stride must be 1, 2 or 4, got 3"):
        timm.create_model("va_resnet18_cbam", stem_stride=3)


def test_timms_own_attn_layer():
    model = timm.create_model("resnet18", block_args={"attn_layer": CBAM})
    assert sum(isinstance(module, CBAM) for module in model.modules()) == 8
