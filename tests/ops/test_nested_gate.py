"""Pools of whole maps and nested gates against the plain formulas: values, gradients, ties, layouts, derivatives."""

from importlib import import_module

import pytest
import torch

from visionattn.ops import map_pools, nested_gate
from visionattn.ops.eager.nested_gate import _first_index

LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
SIZES = [(5, 7, 6), (1, 1, 1), (33, 20, 1), (2, 1, 41), (16, 8, 9)]


@pytest.fixture(autouse=True, params=[True, False], ids=["by hand", "plain"])
def by_hand(request, monkeypatch):
    if request.param:
        for module in ("axis_gate", "eager.nested_gate"):
            monkeypatch.setattr(import_module(f"visionattn.ops.{module}"), "_WORTHWHILE", 1)


def spatial(pools):
    return (pools[:, :1].sin() + pools[:, 1:].square()).sigmoid()


def plain(x, channel):
    mean, maximum = x.flatten(2).mean(2), x.flatten(2).max(2).values
    y = x * (channel + mean.tanh() * maximum)[:, :, None, None]
    return y * spatial(torch.stack((y.max(1).values, y.mean(1)), dim=1))


def ours(x, channel):
    x, mean, maximum = map_pools(x)
    return nested_gate(x, channel + mean.tanh() * maximum, spatial)


def operands(size, layout, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    # Few levels: most maxima are ties.
    x = torch.randn(3, *size, generator=generator, dtype=dtype).mul(2).round().to(memory_format=LAYOUTS[layout])
    channel = torch.ones(3, size[0], dtype=dtype)
    return x.requires_grad_(), channel.requires_grad_()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_values_and_gradients(layout, size):
    x, channel = operands(size, layout)
    out, expected = ours(x, channel), plain(x, channel)
    torch.testing.assert_close(out, expected)
    assert out.stride() == torch.empty_like(x).stride()
    with torch.no_grad():
        torch.testing.assert_close(ours(x, channel), expected)
    weight = torch.randn_like(expected)
    grads = [torch.autograd.grad(result, (x, channel), weight) for result in (out, expected)]
    for actual, wanted in zip(*grads, strict=True):
        torch.testing.assert_close(actual, wanted)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_maps_larger_than_a_run(layout):
    x, channel = (t.detach().requires_grad_() for t in operands((40, 110, 111), layout, torch.float32))
    grads = [torch.autograd.grad(f(x, channel).square().mean(), (x, channel)) for f in (ours, plain)]
    for actual, wanted in zip(*grads, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_second_derivatives(layout):
    x = torch.randn(2, 3, 3, 2, dtype=torch.float64).to(memory_format=LAYOUTS[layout]).requires_grad_()
    channel = torch.rand(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(ours, (x, channel), fast_mode=True)


def test_gradient_given_is_left_alone():
    x, channel = operands((4, 3, 3), "nchw")
    weight = torch.randn_like(x)
    kept = weight.clone()
    first = torch.autograd.grad(ours(x, channel), x, weight)[0]
    result = ours(x, channel)
    again = [torch.autograd.grad(result, x, weight, retain_graph=True)[0] for _ in range(2)]
    assert weight.equal(kept) and first.equal(again[0]) and first.equal(again[1])


def test_only_the_gate_is_trained():
    x, channel = operands((4, 3, 3), "channels_last")
    ours(x.detach(), channel).sum().backward()
    torch.testing.assert_close(channel.grad, torch.autograd.grad(plain(x, channel).sum(), channel)[0])


def test_any_strides():
    x, channel = operands((4, 6, 8), "nchw")
    view = x[:, :, ::2, 1:]
    grads = [torch.autograd.grad(f(view, channel).square().sum(), x)[0] for f in (ours, plain)]
    torch.testing.assert_close(*grads)


def test_works_under_function_transforms():
    x, channel = (tensor.detach() for tensor in operands((4, 5, 3), "nchw"))
    grads = [torch.func.grad(lambda x, f=f: f(x, channel).square().sum())(x) for f in (ours, plain)]
    torch.testing.assert_close(*grads)


def test_nan_is_kept():
    x, channel = operands((4, 5, 3), "nchw")
    x = x.detach().clone()
    x[1, 2, 3, 1] = float("nan")
    x.requires_grad_()
    out = ours(x, channel)
    assert out.isnan().equal(plain(x, channel).isnan())
    assert torch.autograd.grad(out.sum(), x)[0][0].isfinite().all()


@pytest.mark.parametrize("dim", [1, 2])
def test_first_index(dim):
    x = torch.randint(-2, 3, (3, 50, 40)).float()
    expected = x.max(dim, keepdim=True).indices
    assert _first_index(x, x.amax(dim, keepdim=True), dim, torch.empty_like(x)).equal(expected)
