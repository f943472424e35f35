"""CBAM ResNets against the author's network, and his checkpoint format."""

import pytest
import timm
import torch

import visionattn  # noqa: F401
from visionattn.testing.fixtures import load, relative_error


def authors_file(golden, path, wrapped):
    weights = golden.state_dict
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in weights.items()}, "epoch": 100, "best_prec1": torch.tensor(77.6)}
        if wrapped
        else weights,
        path,
    )
    return {"file": str(path)}


@pytest.mark.parametrize("wrapped", [True, False], ids=["module. in state_dict", "flat"])
@pytest.mark.parametrize(
    ("name", "fixture", "arguments"),
    [
        ("va_resnet50_cbam", "cbam_resnet50_eval", {}),
        ("va_resnet18_cbam", "cbam_resnet18_cifar_eval", {"stem_stride": 1, "num_classes": 10}),
    ],
)
def test_golden(name, fixture, arguments, wrapped, tmp_path):
    golden = load(fixture)
    overlay = authors_file(golden, tmp_path / "author.pth", wrapped) | {
        "num_classes": arguments.get("num_classes", 1000)
    }
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **arguments).eval()
    with torch.inference_mode():
        features, (_, *stages) = model.forward_intermediates(golden.input)
        assert relative_error(model.forward_head(features), golden.arrays["out_0"]) < 1e-4
    for index, stage in enumerate(stages):
        assert relative_error(stage.mean((2, 3)), golden.arrays[f"feat_{index}"]) < 1e-4
    assert sum(p.numel() for p in model.parameters()) == golden.meta["params"]


@pytest.mark.parametrize(
    ("name", "params"), [("va_resnet18_cbam", 11_779_392), ("va_resnet50_cbam", 28_089_624)], ids=["18", "50"]
)
def test_published_sizes(name, params):
    assert sum(p.numel() for p in timm.create_model(name, device="meta").parameters()) == params


def test_starts_as_the_paper_does():
    model = timm.create_model("va_resnet18_cbam")
    for block in (block for stage in (model.layer1, model.layer4) for block in stage):
        assert block.se.spatial_gate.bn.weight.item() == 0
        assert block.bn2.weight.min() == 1  # the official code does not start residual branches at zero
        assert not block.se.channel_gate.fc1.bias.any()


def test_plugin_can_be_configured():
    model = timm.create_model("va_resnet18_cbam", plugin={"type": "cbam", "reduction": 4, "no_spatial": True})
    assert model.layer1[0].se.channel_gate.fc1.out_features == 16
    with pytest.raises(ValueError, match=r"unknown plug-in 'cbamm'; there are: .*cbam, "):
        timm.create_model("va_resnet18_cbam", plugin="cbamm")
    with pytest.raises(ValueError, match="stem_stride must be 1, 2 or 4, got 3"):
        timm.create_model("va_resnet18_cbam", stem_stride=3)


def test_timms_own_door():
    from visionattn.plugins import CBAM

    model = timm.create_model("resnet18", block_args={"attn_layer": CBAM})
    assert sum(isinstance(module, CBAM) for module in model.modules()) == 8
