"""Focused attention: both orders and the hand-written passes against the formula; extreme numbers, derivatives."""

from importlib import import_module

import pytest
import torch
from torch.nn import functional as F

from visionattn.ops import focused_attention, focused_features

SIZES = [(3, 20, 20, 16, 2), (1, 7, 49, 24, 3), (2, 1, 1, 8, 8), (2, 90, 4, 8, 1)]


@pytest.fixture(params=["by hand", "plain"])
def path(request, monkeypatch):
    module = import_module("visionattn.ops.focused_attention")
    if request.param == "plain":
        monkeypatch.setattr(module, "use_eager_kernel", lambda x: False)
    else:
        monkeypatch.setattr(
            import_module("visionattn.ops.eager._chunks"), "NUMBERS", 700
        )  # also runs of several images, and a rest


def operands(size, dtype=torch.float64):
    batch, queries, keys, channels, heads = size
    generator = torch.Generator().manual_seed(0)
    shapes = [(batch, tokens, channels) for tokens in (queries, keys, keys)] + [(channels,), (keys, channels)]
    return [torch.randn(s, generator=generator, dtype=dtype).requires_grad_() for s in shapes], heads


def literal(q, k, v, scale, positions, heads, power):
    q, k = ((t.relu() + 1e-6) / F.softplus(scale) for t in (q, k + positions))
    q, k = (t.norm(dim=-1, keepdim=True) * t**power / (t**power).norm(dim=-1, keepdim=True) for t in (q, k))
    q, k, v = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    weights = q @ k.mT / k.size(2)
    return (weights @ v / (weights.sum(-1, keepdim=True) + 1e-6)).transpose(1, 2).flatten(2)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("quadratic", [None, False, True], ids=["chosen", "linear", "quadratic"])
@pytest.mark.parametrize("power", [1, 2, 3, 5])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_values_and_gradients(size, power, quadratic):
    inputs, heads = operands(size)
    out = focused_attention(*inputs, num_heads=heads, focusing_factor=power, quadratic=quadratic)
    expected = literal(*inputs, heads, power)
    torch.testing.assert_close(out, expected)
    weight = torch.randn_like(out)
    for actual, wanted in zip(*(torch.autograd.grad(r, inputs, weight) for r in (out, expected)), strict=True):
        torch.testing.assert_close(actual, wanted)


@pytest.mark.usefixtures("path")
def test_second_derivatives():
    inputs, heads = operands((1, 3, 3, 4, 2))
    assert torch.autograd.gradgradcheck(lambda *x: focused_attention(*x, num_heads=heads), inputs, fast_mode=True)


def test_any_strides():
    torch.manual_seed(0)
    qkv = torch.randn(2, 3 * 16, 30, dtype=torch.float64, requires_grad=True)
    scale = torch.zeros(16, dtype=torch.float64)
    q, k, v = qkv.mT.chunk(3, -1)
    out, expected = focused_attention(q, k, v, scale, num_heads=2), literal(q, k, v, scale, 0, 2, 3)
    grads = [torch.autograd.grad(result.square().sum(), qkv, retain_graph=True)[0] for result in (out, expected)]
    torch.testing.assert_close(*grads)
    torch.testing.assert_close(*(torch.autograd.grad(result.sum(), qkv)[0] for result in (out, expected)))


def test_works_under_function_transforms():
    inputs, heads = operands(SIZES[0])
    inputs = [t.detach() for t in inputs]
    functions = (
        lambda q: focused_attention(q, *inputs[1:], num_heads=heads).square().sum(),
        lambda q: literal(q, *inputs[1:], heads, 3).square().sum(),
    )
    torch.testing.assert_close(*(torch.func.grad(function)(inputs[0]) for function in functions))


def test_keeps_little_for_the_backward_pass():
    inputs, heads = operands((2, 196, 196, 64, 2), torch.float32)
    kept = {}

    def note(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        result = focused_attention(*inputs, num_heads=heads)
    assert sum(kept.values()) < 3.7 * result.nbytes  # q, k, v, positions (half of it) and means over the keys


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("quadratic", [False, True], ids=["linear", "quadratic"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("size", [0.0, 1e-4, 1.0, 1e4])
def test_extreme_numbers_stay_finite(dtype, size, quadratic):
    inputs, heads = operands((2, 64, 64, 64, 2))
    q, k, v, scale, _ = (t.detach().to(dtype) for t in inputs)
    q, k, v = (t.mul(size).requires_grad_() for t in (q, k, v))
    with torch.no_grad():
        q[0, 0], k[0, 0], q[0, 1] = -size - 1, -1, 0
    scale = (5 * scale).requires_grad_()
    out = focused_attention(q, k, v, scale, num_heads=heads, quadratic=quadratic)
    assert out.dtype == dtype and out.isfinite().all()
    assert out.abs().max() <= v.abs().max()  # means of values
    grads = torch.autograd.grad(out.float().mean(), (q, k, v, scale))
    assert all(grad.isfinite().all() for grad in grads)
    expected = literal(*(t.double() for t in (q, k, v, scale)), 0, heads, 3)
    tolerance = {torch.float16: 2e-3, torch.bfloat16: 1e-2, torch.float32: 1e-4}[dtype]
    assert (out - expected).abs().max() <= tolerance * expected.abs().max()


def test_autocast_does_not_reach_the_sums():
    inputs, heads = operands((1, 60, 60, 16, 2), torch.float32)
    expected = focused_attention(*inputs, num_heads=heads)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(focused_attention(*inputs, num_heads=heads), expected)


@pytest.mark.parametrize("power", [1, 3, 8])
def test_features_keep_the_length(power):
    t = torch.rand(5, 32) * torch.logspace(-6, 6, 5)[:, None]
    features = focused_features(t, torch.zeros(32), power)
    lengths = (t + 1e-6).norm(dim=-1) / F.softplus(torch.zeros(()))
    torch.testing.assert_close(features.norm(dim=-1), lengths)
    assert features.argmax(-1).equal(t.argmax(-1))
