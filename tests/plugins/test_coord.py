"""Coordinate attention against the official code's recorded outputs, gradients and running statistics."""

import pytest
import torch

from visionattn.models.builder import rename_keys
from visionattn.plugins import CoordinateAttention
from visionattn.reference.coord import coordinate_attention
from visionattn.testing.fixtures import check_module, load

FIXTURES = [
    "coordatt_module_1x48x17x9_eval",
    "coordatt_module_1x48x17x9_train",
    "coordatt_module_2x64x14x14_train",
    "coordatt_module_mbv2keys_1x48x17x9_eval",
]


@pytest.mark.parametrize("name", FIXTURES)
def test_golden(name):
    golden = load(name)
    module = CoordinateAttention(golden.meta["constructor"]["channels"])
    module.load_state_dict(rename_keys(golden.state_dict, CoordinateAttention.official_keys))
    assert sum(p.numel() for p in module.parameters()) == golden.meta["params"]
    check_module(module, golden, 1e-5)
    for key, expected in golden.meta.get("buffers_after", {}).items():
        torch.testing.assert_close(module.get_buffer(key), torch.tensor(expected), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("size", [(9, 9), (7, 19), (12, 1)], ids=str)
def test_agrees_with_the_formulas_on_any_shape(layout, size):
    torch.manual_seed(0)
    module = CoordinateAttention(24).double().train()
    x = torch.randn(3, 24, *size, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    weight = torch.randn_like(x)
    results = []
    for function in (module, lambda x: coordinate_attention(module, x)):
        out = function(x)
        results.append((out, *torch.autograd.grad((out * weight).sum(), (x, *module.parameters()))))
    for ours, naive in zip(*results, strict=True):
        torch.testing.assert_close(ours, naive, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("channels", "hidden"), [(8, 8), (256, 8), (320, 10), (1000, 31)])
def test_hidden_width(channels, hidden):
    assert CoordinateAttention(channels).conv1.out_channels == hidden


def test_switches():
    module = CoordinateAttention(64, reduction=4, min_width=2)
    assert module.conv1.out_channels == 16
    assert CoordinateAttention(4, reduction=4, min_width=2).conv1.out_channels == 2


@pytest.mark.parametrize("argument", ["channels", "reduction", "min_width"])
def test_bad_arguments(argument):
    with pytest.raises(ValueError, match=f"{argument} must be at least 1, got 0"):
        CoordinateAttention(**{"channels": 8, argument: 0})
