"""Efficient local attention against the author's code's recorded outputs and gradients."""

import pytest
import torch

from visionattn.plugins import EfficientLocalAttention, resolve_plugin
from visionattn.reference.ela import NaiveEfficientLocalAttention
from visionattn.testing.fixtures import check_module, load, relative_error

FIXTURES = {
    "ela_module_T_1x96x17x9_eval": "ela_t",
    "ela_module_B_1x96x17x9_eval": "ela_b",
    "ela_module_S_1x96x17x9_eval": "ela_s",
    "ela_module_L_1x96x17x9_eval": "ela_l",
    "ela_module_L_2x64x14x14_eval": "ela_l",
}


@pytest.mark.parametrize("name", FIXTURES)
def test_golden(name):
    golden = load(name)
    module = resolve_plugin(FIXTURES[name])(golden.meta["constructor"]["channels"])
    # The author's names are ours, so his checkpoints load strictly.
    module.load_state_dict(golden.state_dict)
    assert sum(p.numel() for p in module.parameters()) == golden.meta["params"]
    check_module(module, golden, 1e-5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("size", [(17, 9), (8, 23), (2, 1)], ids=str)
@pytest.mark.parametrize("residual", [False, True])
def test_agrees_with_the_naive_formulation(layout, size, residual):
    torch.manual_seed(0)
    naive = NaiveEfficientLocalAttention(32)
    module = EfficientLocalAttention(32, residual=residual)
    for parameter in naive.parameters():
        torch.nn.init.normal_(parameter)
    module.load_state_dict(naive.state_dict())
    x = torch.randn(2, 32, *size).to(memory_format=layout)
    weight = torch.randn_like(x)
    results = []
    for block in (lambda leaf: naive(leaf) + leaf if residual else naive(leaf), module):
        leaf = x.clone().requires_grad_()
        out = block(leaf)
        (out * weight).sum().backward()
        results.append([out, leaf.grad])
    results[0] += [p.grad for p in naive.parameters()]
    results[1] += [p.grad for p in module.parameters()]
    for expected, actual in zip(*results, strict=True):
        assert relative_error(actual, expected) < 1e-5


@pytest.mark.parametrize(
    ("name", "channels", "groups", "norm_groups"),
    [
        ("ela_t", 144, 144, 24),
        ("ela_t", 48, 48, 24),
        ("ela_l", 144, 18, 16),
        ("ela_l", 20, 2, 10),
        ("ela_s", 28, 2, 14),
        ("ela_s", 4, 1, 4),
        ("ela_b", 7, 7, 7),
        ("ela_l", 1, 1, 1),
    ],
)
def test_groups_fall_back_to_a_divisor(name, channels, groups, norm_groups):
    module = resolve_plugin(name)(channels)
    assert (module.conv.groups, module.gn.num_groups) == (groups, norm_groups)
    assert module(torch.randn(1, channels, 3, 2)).isfinite().all()


def test_groups_of_one_value_give_their_bias():
    module = resolve_plugin("ela_t")(8)
    torch.nn.init.normal_(module.gn.bias)
    x = torch.randn(1, 8, 1, 1)
    torch.testing.assert_close(module(x), x * module.gn.bias.sigmoid().square()[:, None, None])


def test_starts_near_a_quarter_of_the_input():
    torch.manual_seed(0)
    module = EfficientLocalAttention(64)
    assert module.gn.weight.eq(1).all() and not module.gn.bias.any() and module.conv.bias is None
    module.conv.weight.data.zero_()
    x = torch.randn(1, 64, 5, 4)
    torch.testing.assert_close(module(x), x / 4)
    module.reset_parameters()
    assert module.conv.weight.std() > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": 0}, "channels must be at least 1, got 0"),
        ({"channels": 8, "group_size": 0}, "group_size must be at least 1, got 0"),
        ({"channels": 8, "norm_groups": 0}, "norm_groups must be at least 1, got 0"),
        ({"channels": 8, "kernel_size": 6}, "kernel_size must be a positive odd number, got 6"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        EfficientLocalAttention(**arguments)
