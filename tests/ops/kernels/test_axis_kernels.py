"""Pools over axes, and gates that lack some, by kernels against their torch code in float64."""

import pytest
import torch
from kernels import DTYPES, LAYOUTS, check, check_compiles, check_exports, check_operator, laid_out, random

from visionattn.ops import (
    axis_attention,
    axis_gate,
    axis_pools,
    cross_gate,
    explain,
    map_pools,
    nested_gate,
    strip_gate,
    use_backend,
)
from visionattn.ops.triton import _axis_launch as launch

LAYOUT = pytest.mark.parametrize("layout", LAYOUTS)
# Odd sides, channels that are no powers of two; one map of a single channel, one of a single position.
SIZES = pytest.mark.parametrize("size", [(2, 5, 7, 13), (2, 12, 14, 7), (1, 1, 49, 3), (3, 67, 1, 1)], ids=str)
POOLS = [(kind, axis) for axis in (2, 3, 1) for kind in ("max", "mean")]
STRIPS = [("mean", 3), ("mean", 2)]


def maps(size, layout, dtype, seed=0):
    """Numbers of few levels, so that many maxima are ties."""
    return laid_out(random(*size, seed=seed, levels=2, dtype=dtype), layout)


def gates(size, dtype, *lacks):
    shapes = [[1 if axis in axes else number for axis, number in enumerate(size)] for axes in lacks]
    return [random(*shape, seed=3 + i, dtype=dtype).sigmoid() for i, shape in enumerate(shapes)]


@DTYPES
@LAYOUT
@SIZES
def test_pools_over_single_axes(size, layout, dtype):
    check(axis_pools, maps(size, layout, dtype), POOLS)


@DTYPES
@LAYOUT
@SIZES
def test_pools_over_the_positions(size, layout, dtype):
    check(map_pools, maps(size, layout, dtype))
