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

from visionattn.ops import channel_moments, residual_gate, subspace_scores
from visionattn.ops.triton import _axis_launch as launch
from visionattn.ops.triton import subspace

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


@pytest.fixture
def in_parts(monkeypatch):
    """Small tiles, so that many programs share an image."""
    monkeypatch.setattr(subspace, "TILE", 128)
    monkeypatch.setattr(launch, "TILES", dict.fromkeys(launch.TILES, 256))


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


def test_operators():
    x, (scale, shift, weight) = maps((2, 6, 5, 4), "NHWC"), numbers(6)
    grad = random(2, GROUPS, 5, 4)
    check_operator(subspace.group_scores_backward, grad, x, scale, shift, weight)
    check_operator(subspace.image_affine, x, random(2, 6), random(2, 6))
    leaves = [part.requires_grad_() for part in (x, scale, shift, weight)]
    check_operator(subspace.group_scores, *leaves)
    check_operator(subspace.image_moments, x)


def test_compilers_and_exporters():
    def function(x, scale, shift, weight):
        mean, var = channel_moments(x)
        return residual_gate(x, subspace_scores(x, scale * var.rsqrt(), shift - mean, weight).sigmoid())

    arguments = (maps((2, 6, 5, 4), "NHWC"), *numbers(6))
    check_compiles(function, *arguments)
    check_exports(function, *arguments)
