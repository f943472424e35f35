"""BAM against the official code's recorded outputs, gradients and running statistics."""

import pytest
import torch

from visionattn.models.builder import rename_keys
from visionattn.plugins import BAM
from visionattn.reference.bam import bam
from visionattn.testing.fixtures import check_module, load


@pytest.mark.parametrize("name", ["bam_module_2x48x12x12_eval", "bam_module_2x48x12x12_train"])
def test_golden(name):
    golden = load(name)
    module = BAM(golden.meta["constructor"]["channels"])
    module.load_state_dict(rename_keys(golden.state_dict, BAM.official_keys))
    assert sum(p.numel() for p in module.parameters()) == golden.meta["params"]
    check_module(module, golden, 1e-5)
    buffers = {key: torch.tensor(value) for key, value in golden.meta.get("buffers_after", {}).items()}
    for key, expected in rename_keys(buffers, BAM.official_keys).items():
        torch.testing.assert_close(module.get_buffer(key), expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("mode", ["product", "sum"])
@pytest.mark.parametrize("size", [(9, 9), (7, 19), (12, 5)], ids=str)
def test_agrees_with_the_formulas_on_any_shape(mode, size):
    torch.manual_seed(0)
    module = BAM(32, mode=mode, reduction=4, num_layers=2, num_dilated=3, dilation=2).double().train()
    x = torch.randn(3, 32, *size, dtype=torch.float64, requires_grad=True)
    weight = torch.randn_like(x)
    results = []
    for function in (module, lambda x: bam(module, x)):
        out = function(x)
        results.append((out, *torch.autograd.grad((out * weight).sum(), (x, *module.parameters()))))
    for ours, naive in zip(*results, strict=True):
        torch.testing.assert_close(ours, naive, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("mode", ["product", "sum"])
def test_gates_are_what_the_map_is_multiplied_by(mode):
    torch.manual_seed(0)
    module, x = BAM(32, mode=mode).eval(), torch.randn(2, 32, 5, 6)
    torch.testing.assert_close(x * module.gates(x)["gate"], module(x))


def test_starts_as_the_official_network_does():
    module = BAM(256)
    assert all(not p.any() for name, p in module.named_parameters() if name.endswith("bias"))
    conv, fc = module.spatial_gate.conv0, module.channel_gate.fc0
    assert conv.weight.std().item() == pytest.approx((2 / (16 * 9)) ** 0.5, rel=0.1)
    assert fc.weight.abs().max().item() <= 1 / 16


def test_narrow_maps_keep_one_hidden_unit():
    assert BAM(3).channel_gate.fc0.out_features == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": 0}, "channels must be at least 1, got 0"),
        ({"channels": 8, "reduction": 0}, "reduction must be at least 1, got 0"),
        ({"channels": 8, "num_layers": 0}, "num_layers"),
        ({"channels": 8, "num_dilated": 0}, "num_dilated"),
        ({"channels": 8, "dilation": 0}, "dilation must be at least 1"),
        ({"channels": 8, "mode": "max"}, "mode must be one of product, sum, got 'max'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        BAM(**arguments)
