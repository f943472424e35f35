"""ULSAM against the official code's recorded outputs and against a literal formulation of it."""

import pytest
import torch
from torch import nn

from visionattn.plugins import ULSAM
from visionattn.reference.ulsam import NaiveULSAM
from visionattn.testing.fixtures import check_module, load, relative_error

FIXTURES = [
    "ulsam_module_1x48x17x9_g8_eval",
    "ulsam_module_1x48x17x9_g8_train",
    "ulsam_module_2x32x4x3_g4_eval",
    "ulsam_module_2x32x4x3_g4_train",
    "ulsam_module_2x64x14x14_g4_train",
    "ulsam_module_2x64x14x14_g16_eval",
]


@pytest.mark.parametrize("name", FIXTURES)
def test_golden(name):
    golden = load(name)
    module = ULSAM(golden.meta["constructor"]["channels"], num_splits=golden.meta["constructor"]["subspaces"])
    module.load_state_dict(ULSAM.merge_subspaces(golden.state_dict))
    check_module(module, golden, 1e-6)
    after = {key: torch.tensor(value) for key, value in golden.meta.get("buffers_after", {}).items()}
    for key, expected in ULSAM.merge_subspaces(after).items():
        torch.testing.assert_close(module.get_buffer(key), expected, rtol=1e-5, atol=1e-6)


def pair(channels, num_splits, size, train, dtype=torch.float64):
    """The literal formulation and ours, with the same random weights, and an input off centre."""
    torch.manual_seed(0)
    naive = NaiveULSAM(channels, num_splits).to(dtype)
    for tensor in naive.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) * torch.where(torch.rand_like(tensor) < 0.4, -1, 1))
    for key, tensor in naive.named_buffers():
        if "running_var" in key:
            tensor.abs_().add_(0.1)
    ours = ULSAM(channels, num_splits=num_splits, dtype=dtype)
    ours.load_state_dict(ULSAM.merge_subspaces(naive.state_dict()))
    return naive.train(train), ours.train(train), torch.randn(3, channels, *size, dtype=dtype) + 2


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(("channels", "num_splits", "size"), [(12, 4, (7, 5)), (6, 1, (1, 8)), (5, 5, (9, 2))], ids=str)
def test_equals_the_literal_formulation(channels, num_splits, size, train, layout):
    naive, ours, x = pair(channels, num_splits, size, train)
    x = x.contiguous(memory_format=layout).requires_grad_()
    y = x.detach().clone().requires_grad_()
    weights = torch.randn_like(x)
    expected, out = naive(x), ours(y)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    (expected * weights).sum().backward()
    (out * weights).sum().backward()
    torch.testing.assert_close(y.grad, x.grad, rtol=1e-10, atol=1e-10)
    gradients = ULSAM.merge_subspaces({key: p.grad for key, p in naive.named_parameters()})
    for key, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[key], rtol=1e-9, atol=1e-11)
    buffers = ULSAM.merge_subspaces(dict(naive.named_buffers()))
    for key, buffer in ours.named_buffers():
        torch.testing.assert_close(buffer, buffers[key], rtol=1e-10, atol=1e-10)


def test_more_images_than_fit_in_the_cache_at_once():
    naive, ours, x = pair(128, 4, (48, 40), train=True, dtype=torch.float32)
    x = torch.cat([x, x.flip(3)]).requires_grad_()
    assert x.numel() > 2 * 2**19
    expected, out = naive(x), ours(x)
    assert relative_error(out, expected) < 1e-6
    (grad,) = torch.autograd.grad(expected.square().sum(), x)
    (ours_grad,) = torch.autograd.grad(out.square().sum(), x)
    assert (ours_grad - grad).abs().mean() < 1e-6 * grad.abs().mean()


def test_gradient_of_ties_goes_to_the_first():
    x = torch.zeros(1, 4, 5, 4, dtype=torch.float64, requires_grad=True)
    naive, ours, _ = pair(4, 2, (5, 4), train=False)
    for module in (naive, ours):
        for key, parameter in module.named_parameters():
            if key.endswith(("bias", "weight")):
                nn.init.constant_(parameter, 0.5)
    weights = torch.randn_like(x)
    (expected,) = torch.autograd.grad(((naive(x + 1)) * weights).sum(), x)
    (grad,) = torch.autograd.grad(((ours(x + 1)) * weights).sum(), x)
    torch.testing.assert_close(grad, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_other_normalisations_are_called(train):
    _, ours, x = pair(8, 2, (6, 6), train)
    expected = ours(x)
    ours.bn_dws.__class__ = type("Other", (nn.BatchNorm2d,), {})
    torch.testing.assert_close(ours(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("momentum", "track"), [(None, True), (0.1, False)], ids=["average", "untracked"])
def test_other_statistics(momentum, track):
    _, ours, x = pair(8, 2, (6, 6), train=True)
    ours.bn_dws = nn.BatchNorm2d(8, momentum=momentum, track_running_stats=track, dtype=x.dtype)
    expected = ours(x)
    if track:
        torch.testing.assert_close(ours.bn_dws.running_mean, ours.conv_dws(x).mean((0, 2, 3)))
    else:
        torch.testing.assert_close(ours.eval().bn_dws(x), ours.train().bn_dws(x))
    torch.testing.assert_close(ours(x), expected)


def test_attention_sums_to_one_in_each_group():
    attention = ULSAM(12, num_splits=3).eval().attention(torch.randn(2, 12, 5, 4))
    assert attention.shape == (2, 3, 5, 4)
    torch.testing.assert_close(attention.sum((2, 3)), torch.ones(2, 3))


def test_starts_as_the_paper_does():
    module = ULSAM(64)
    assert (module.num_splits, module.bn_dws.momentum, module.bn_point.momentum) == (4, 0.9, 0.9)
    assert sum(p.numel() for p in module.parameters()) == 5 * 64 + 3 * 4
    nn.init.zeros_(module.conv_dws.weight)
    module.reset_parameters()
    assert module.conv_dws.weight.any()


def test_momentum_is_selectable():
    module = ULSAM(8, bn_momentum=0.1)
    x = torch.randn(4, 8, 5, 5)
    module(x)
    expected = 0.1 * module.conv_dws(x).mean((0, 2, 3))
    torch.testing.assert_close(module.bn_dws.running_mean, expected)


def test_one_value_has_no_statistics():
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        ULSAM(8)(torch.randn(1, 8, 1, 1))


def test_subspaces_are_merged_in_order_below_any_prefix():
    parts = {f"a.b.subspaces.{n}.conv_dws.bias": torch.full((2,), float(n)) for n in (10, *range(10))}
    merged = ULSAM.merge_subspaces({"fc.weight": torch.ones(1), **parts})
    assert list(merged) == ["fc.weight", "a.b.conv_dws.bias"]
    assert merged["a.b.conv_dws.bias"].tolist() == [n for n in range(11) for _ in range(2)]
    del parts["a.b.subspaces.3.conv_dws.bias"]
    with pytest.raises(ValueError, match=r"a\.b\.conv_dws\.bias has the subspaces \[0, 1, 2, 4"):
        ULSAM.merge_subspaces(parts)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": 10}, "channels=10, num_splits=4"),
        ({"channels": 0}, "channels=0"),
        ({"channels": 8, "num_splits": 0}, "num_splits=0"),
        ({"channels": 8, "bn_momentum": 0.0}, "bn_momentum must be above 0 and at most 1, got 0.0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ULSAM(**arguments)
