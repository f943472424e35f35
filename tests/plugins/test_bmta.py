"""Balanced multi-task attention against the official code's recorded outputs, gradients and running statistics."""

import pytest
import torch

from visionattn.models.builder import rename_keys
from visionattn.plugins import BalancedMultiTaskAttention
from visionattn.reference.bmta import balanced_attention
from visionattn.testing.fixtures import check_module, load

FIXTURES = ["bmta_module_1x48x17x9_eval", "bmta_module_1x48x17x9_train", "bmta_module_2x64x14x14_train"]


@pytest.mark.parametrize("name", FIXTURES)
def test_golden(name):
    golden = load(name)
    module = BalancedMultiTaskAttention(golden.meta["constructor"]["channels"])
    module.load_state_dict(rename_keys(golden.state_dict, BalancedMultiTaskAttention.official_keys))
    assert sum(p.numel() for p in module.parameters()) == golden.meta["params"]
    check_module(module, golden, 1e-5)
    for key, expected in golden.meta.get("buffers_after", {}).items():
        actual = module.get_buffer(key.removeprefix("coord_attention."))
        torch.testing.assert_close(actual, torch.tensor(expected), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("size", [(9, 9), (7, 19), (12, 1)], ids=str)
def test_agrees_with_the_formulas_on_any_shape(layout, size):
    torch.manual_seed(0)
    module = BalancedMultiTaskAttention(32, alpha=-0.3).double().train()
    x = torch.randn(3, 32, *size, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    weight = torch.randn_like(x)
    results = []
    for function in (module, lambda x: balanced_attention(module, x)):
        out = function(x)
        results.append((out, *torch.autograd.grad((out * weight).sum(), (x, *module.parameters()))))
    for ours, naive in zip(*results, strict=True):
        torch.testing.assert_close(ours, naive, rtol=1e-9, atol=1e-9)


def test_starts_with_the_given_mix():
    module = BalancedMultiTaskAttention(16)
    assert module.alpha.item() == 0.5 and module.alpha.sigmoid().item() == pytest.approx(0.6225, abs=1e-4)
    module = BalancedMultiTaskAttention(16, alpha=2.0)
    module.alpha.data.zero_()
    module.reset_parameters()
    assert module.alpha.item() == 2.0


def test_switches():
    module = BalancedMultiTaskAttention(64, reduction=4, se_reduction=8)
    assert (module.conv1.out_channels, module.fc1.weight.size(0)) == (16, 8)


def test_narrow_maps_keep_one_hidden_unit():
    module = BalancedMultiTaskAttention(3)
    assert (module.conv1.out_channels, module.fc1.weight.size(0)) == (1, 1)


@pytest.mark.parametrize("argument", ["channels", "reduction", "se_reduction"])
def test_bad_arguments(argument):
    with pytest.raises(ValueError, match=f"{argument} must be at least 1, got 0"):
        BalancedMultiTaskAttention(**{"channels": 8, argument: 0})
