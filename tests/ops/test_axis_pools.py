"""Pools over axes and convolutions of planes against the plain functions they stand for."""

from importlib import import_module

import pytest
import torch

from visionattn.ops import axis_pools, memory_format, plane_conv

POOLS = [(kind, axis) for axis in (1, 2, 3) for kind in ("max", "mean")]
SIZES = [(5, 7, 6), (1, 1, 1), (33, 20, 1), (2, 1, 41), (16, 8, 9)]


@pytest.fixture(autouse=True, params=[True, False], ids=["by hand", "plain"])
def by_hand(request, monkeypatch):
    if request.param:
        for module in ("axis_pools", "plane_conv"):
            monkeypatch.setattr(import_module(f"visionattn.ops.{module}"), "_WORTHWHILE", 1)
    return request.param


def plain(x, pools=POOLS):
    return [x.mean(axis) if kind == "mean" else x.max(axis).values for kind, axis in pools]


def maps(size):
    # Few levels: most maxima are ties.
    x = torch.randn(2, *size, generator=torch.Generator().manual_seed(0)).mul(2).round()
    wide = torch.zeros(2, size[0], size[1], 2 * size[2])
    wide[..., ::2] = x
    return {"NCHW": x, "NHWC": x.to(memory_format=torch.channels_last), "sliced": wide[..., ::2]}


@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "sliced"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_values_and_gradients(layout, size, by_hand):
    x = maps(size)[layout]
    for actual, expected in zip(axis_pools(x, POOLS), plain(x), strict=True):
        torch.testing.assert_close(actual, expected)
    weights = [torch.randn_like(pool) for pool in plain(x)]
    grads = []
    for function in (lambda leaf: axis_pools(leaf, POOLS), plain):
        leaf = x.detach().requires_grad_()
        pools = function(leaf)
        grads.append(torch.autograd.grad(sum((p * w).sum() for p, w in zip(pools, weights, strict=True)), leaf)[0])
    torch.testing.assert_close(*grads)
    assert not by_hand or grads[0].stride() == torch.empty_like(x, memory_format=memory_format(x)).stride()


def test_gradients_of_some_pools():
    x = torch.randn(2, 3, 4, 5, requires_grad=True)
    (actual,) = torch.autograd.grad(sum(part.sum() for part in axis_pools(x, [("mean", 2), ("mean", 2)])), x)
    torch.testing.assert_close(actual, torch.full_like(x, 2 / 4))
    for index, pool in enumerate(POOLS):
        (actual,) = torch.autograd.grad(axis_pools(x, POOLS)[index].square().sum(), x)
        (expected,) = torch.autograd.grad(plain(x, [pool])[0].square().sum(), x)
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_second_derivatives(layout):
    x = torch.randn(2, 2, 3, 2, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: axis_pools(x, POOLS), (x,), fast_mode=True)


def test_works_under_function_transforms():
    x = torch.randn(2, 3, 4, 5)
    actual = torch.func.grad(lambda x: sum(p.square().sum() for p in axis_pools(x, POOLS)))(x)
    torch.testing.assert_close(actual, torch.func.grad(lambda x: sum(p.square().sum() for p in plain(x)))(x))


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_nan_is_kept(layout):
    x = maps((4, 20, 9))[layout].clone()
    x[0, 1, 2, 3] = float("nan")
    for actual, expected in zip(axis_pools(x, POOLS), plain(x), strict=True):
        assert actual.isnan().equal(expected.isnan())


def test_memory_format():
    x = torch.randn(2, 3, 4, 5)
    assert memory_format(x) == torch.contiguous_format
    assert memory_format(x.to(memory_format=torch.channels_last)) == torch.channels_last
    assert memory_format(x[..., ::2]) == torch.contiguous_format
    assert memory_format(torch.randn(2, 3, 1, 1).to(memory_format=torch.channels_last)) == torch.contiguous_format


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kernel", [1, 3, 7])
@pytest.mark.parametrize("size", [(1, 1), (2, 9), (16, 5)], ids=str)
def test_plane_conv(dtype, kernel, size):
    x = torch.randn(2, 2, *size, dtype=dtype, requires_grad=True)
    weight = torch.randn(1, 2, kernel, kernel, dtype=dtype, requires_grad=True)
    actual = plane_conv(x, weight)
    expected = torch.nn.functional.conv2d(x, weight, padding=kernel // 2)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    both = [torch.autograd.grad(out.square().sum(), (x, weight)) for out in (actual, expected)]
    for grads in zip(*both, strict=True):
        torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)
