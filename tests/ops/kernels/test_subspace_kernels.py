"""Scores of subspaces, moments of channels and their gate by kernels against their torch code in float64."""

import pytest
import torch
from kernels import (
    DTYPES,
    LAYOUTS,
    check,
    check_compiles,
    check_exports,
    check_operator,
    check_second_derivatives,
    close,
    laid_out,
    random,
)
from launches import Call, launches, meta

from visionattn.ops import channel_moments, residual_gate, subspace_attention, subspace_scores
from visionattn.ops.triton import _axis_launch as launch
from visionattn.ops.triton import subspace
from visionattn.ops.triton._register import forget_sizes

LAYOUT = pytest.mark.parametrize("layout", LAYOUTS)
SIZES = pytest.mark.parametrize("size", [(2, 6, 7, 13), (1, 15, 14, 3), (2, 6, 1, 49), (1, 33, 2, 1)], ids=str)
GROUPS = 3


def maps(size, layout, dtype=torch.float32):
    """Numbers of few levels, so that many maxima are ties."""
    return laid_out(random(*size, levels=2, dtype=dtype), layout)


def numbers(channels, dtype=torch.float32):
    """A scale of few levels, so that the products are exact in all precisions, a shift and weights."""
    scale, shift = random(channels, seed=1, levels=4), random(channels, seed=2, levels=8)
    weight = random(GROUPS, channels // GROUPS, seed=3)
    return scale.to(dtype), shift.to(dtype), weight.to(dtype)


def of_moments(mean, var):
    scale, shift, weight = numbers(len(mean), mean.dtype)
    return scale * (var + 1).rsqrt(), shift - mean, weight


@pytest.fixture
def in_parts(monkeypatch):
    """Small tiles, so that many programs share an image."""
    monkeypatch.setattr(subspace, "TILE", 128)
    monkeypatch.setattr(launch, "TILES", dict.fromkeys(launch.TILES, 256))
    forget_sizes()
    yield
    forget_sizes()


@DTYPES
@LAYOUT
def test_all_dtypes(layout, dtype):
    x = maps((2, 6, 5, 4), layout, dtype)
    check(subspace_scores, x, *numbers(6, dtype))
    check(residual_gate, x, random(2, GROUPS, 5, 4, seed=4, dtype=dtype).sigmoid())
    if dtype == torch.float32:
        check(channel_moments, x)
    else:  # the statistics are in float32 for all precisions
        for actual, expected in zip(channel_moments(x, backend="triton"), channel_moments(x.double()), strict=True):
            close("moment", actual, expected)


@SIZES
@LAYOUT
def test_all_sizes(layout, size, in_parts):
    x = maps(size, layout)
    check(subspace_scores, x, *numbers(size[1]))
    check(residual_gate, x, random(size[0], GROUPS, *size[2:], seed=4).sigmoid())


@LAYOUT
@pytest.mark.parametrize("residual", [False, True])
def test_attention_with_one_gradient(layout, residual, in_parts):
    x = maps((2, 6, 7, 13), layout)
    rest = (maps((2, 6, 7, 13), layout) - 0.3, True) if residual else (None, False)
    check(subspace_attention, x, of_moments, torch.tanh, GROUPS, True, *rest, tolerance=1e-5)
    check(subspace_attention, x, lambda: numbers(6, x.dtype), torch.tanh, GROUPS, False, *rest, tolerance=1e-5)
    check(subspace_attention, x, of_moments, lambda s: s.detach().tanh(), GROUPS, True, *rest, tolerance=1e-5)


@LAYOUT
def test_moments_of_large_means(layout, in_parts):
    x = laid_out(random(3, 5, 7, 9) + 1000, layout)
    check(channel_moments, x, tolerance=1e-4)  # float32 knows the mean itself no better


@LAYOUT
def test_nan_is_kept_as_by_the_torch_code(layout):
    x = maps((1, 6, 5, 4), layout)
    x[0, 1, 2, 3] = torch.nan
    actual, expected = (subspace_scores(x, *numbers(6), backend=backend) for backend in ("triton", "torch"))
    assert torch.equal(actual.isnan(), expected.isnan()) and actual.isnan().sum() == 6  # at the right border
    torch.testing.assert_close(actual, expected, equal_nan=True)


@LAYOUT
def test_moments_are_divided_among_as_many_programs_as_a_gpu_takes(layout):
    x = meta(2, 256, 56, 56, layout=layout)
    (launch,) = launches(Call("moments", subspace.image_moments, (x,)))
    assert launch.grid[0] == {"NCHW": 512, "NHWC": 112}[layout]  # NHWC: 8 without a division of the rows
    check(channel_moments, laid_out(random(1, 5, 67, 3) + 100, layout), tolerance=1e-5)


def test_second_derivatives():
    x = maps((2, 6, 3, 4), "NHWC")
    check_second_derivatives(subspace_scores, x, *numbers(6))
    check_second_derivatives(residual_gate, x, random(2, GROUPS, 3, 4, seed=4).sigmoid())
    check_second_derivatives(channel_moments, x)
    check_second_derivatives(subspace_attention, x, of_moments, torch.tanh, GROUPS, True, x + 1, True)


def test_operators():
    x, (scale, shift, weight) = maps((2, 6, 5, 4), "NHWC"), numbers(6)
    grad = random(2, GROUPS, 5, 4)
    each = random(2, 6)
    check_operator(subspace.group_scores_backward, grad, x, scale, shift, weight, x, grad, each, each, True, True)
    check_operator(subspace.group_scores_backward, grad, x, scale, shift, weight, None, None, None, None, False, True)
    check_operator(subspace.image_affine, x, random(2, 6), random(2, 6))
    leaves = [part.requires_grad_() for part in (x, scale, shift, weight)]
    check_operator(subspace.group_scores, *leaves)
    check_operator(subspace.image_moments, x)


def test_compilers_and_exporters():
    def function(x, scale, shift, weight):
        mean, var = channel_moments(x)
        return residual_gate(x, subspace_scores(x, scale * var.rsqrt(), shift - mean, weight).sigmoid())

    def attention(x, scale, shift, weight):
        return subspace_attention(
            x, lambda mean, var: (scale * (var + 1).rsqrt(), shift - mean, weight), torch.tanh, GROUPS, True
        )

    arguments = (maps((2, 6, 5, 4), "NHWC"), *numbers(6))
    for compiled in (function, attention):
        check_compiles(compiled, *arguments)
        check_exports(compiled, *arguments)
