"""Cross-shaped window attention against its literal formulation."""

from contextlib import nullcontext

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from visionattn.mixers import CrossShapedWindowAttention
from visionattn.reference.cswin import naive_cswin
from visionattn.testing.fixtures import relative_error


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 3), (6, 6), (8, 5), (7, 11)], ids=str)
@pytest.mark.parametrize(
    "options",
    [{"split_size": 1}, {"split_size": 2}, {"split_size": 4, "qk_scale": 1.0}, {"full": True, "qkv_bias": False}],
    ids=str,
)
def test_agrees_with_the_naive_formulation(size, options):
    torch.manual_seed(0)
    mixer = CrossShapedWindowAttention(16, num_heads=4, **options).double()
    x = torch.randn(2, *size, 16, dtype=torch.float64, requires_grad=True)
    results = []
    for run in (mixer, lambda x: naive_cswin(mixer, x)):
        out = run(x)
        weight = torch.linspace(0, 1, out.numel(), dtype=out.dtype).view_as(out)
        results.append([out, *torch.autograd.grad((out * weight).sum(), [x, *mixer.parameters()])])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [1e3, 1e4, 1e5])
def test_gradients_of_large_inputs_are_those_of_the_unfused_form(size):
    torch.manual_seed(0)
    mixer, x = CrossShapedWindowAttention(32, num_heads=2, split_size=2), size * torch.randn(2, 14, 14, 32)
    grads = []
    for backend in (sdpa_kernel(SDPBackend.MATH), nullcontext()):
        leaf = x.clone().requires_grad_()
        with backend:
            (mixer(leaf) * torch.linspace(0, 1, x.numel()).view_as(x)).sum().backward()
        grads.append(leaf.grad)
    assert relative_error(*grads) < 1e-3


def test_stripes_are_crosses():
    mixer = CrossShapedWindowAttention(8, num_heads=2, split_size=2)
    x = torch.randn(1, 8, 6, 8, requires_grad=True)
    mixer(x)[0, 2, 4].sum().backward()  # in the horizontal stripe of rows 2-3 and the vertical one of columns 4-5
    seen = x.grad[0].abs().sum(-1) > 0
    expected = torch.zeros(8, 6, dtype=torch.bool)
    expected[2:4], expected[:, 4:6] = True, True
    assert torch.equal(seen, expected)


def test_wide_stripes_are_one_full_branch():
    torch.manual_seed(0)
    halves = CrossShapedWindowAttention(16, num_heads=4, split_size=7)
    whole = CrossShapedWindowAttention(16, num_heads=4, full=True)
    state = halves.state_dict()
    for kind in ("weight", "bias"):
        state[f"attns.0.get_v.{kind}"] = torch.cat([state.pop(f"attns.{i}.get_v.{kind}") for i in (0, 1)])
    whole.load_state_dict(state)
    x = torch.randn(2, 7, 5, 16)
    torch.testing.assert_close(halves(x), whole(x))


def test_has_the_official_names():
    names = {"qkv.weight", "qkv.bias", "proj.weight", "proj.bias", "attns.0.get_v.weight", "attns.0.get_v.bias"}
    assert set(CrossShapedWindowAttention(16, num_heads=1, full=True).state_dict()) == names
    mixer = CrossShapedWindowAttention(16, num_heads=2)
    assert set(mixer.state_dict()) == names | {"attns.1.get_v.weight", "attns.1.get_v.bias"}
    assert mixer.attns[0].get_v.weight.shape == (8, 1, 3, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 8, "num_heads": 3}, "dim=8, num_heads=3"),
        ({"dim": 9, "num_heads": 3}, "num_heads must be even"),
        ({"dim": 8, "num_heads": 2, "split_size": 0}, "split_size must be at least 1, got 0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        CrossShapedWindowAttention(**arguments)
