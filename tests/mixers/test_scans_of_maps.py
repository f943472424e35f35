"""Mixers that go through a map in order: how many operators they need, and that of a floating point type."""

import pytest
import torch

from visionattn import catalog
from visionattn.profiling.operator_counter import count_pass
from visionattn.testing.contracts import perturbed

SCANS = ("chela", "mega", "regla", "titans")


@pytest.mark.parametrize("name", SCANS)
def test_no_loop_over_tokens(name):
    """768 tokens more take no operator for each 16 of them: one for each 64 goes through blocks of them."""
    module = catalog.get("mixer", name).constructor(16).eval()
    few, many = (count_pass(lambda x=x: module(x))[1].calls for x in (torch.randn(1, s, s, 16) for s in (16, 32)))
    assert few - 8 <= many < few + 768 / 16


@pytest.mark.parametrize("name", SCANS)
def test_float32_is_near_float64_on_long_maps(name):
    """Products of many gates lose little: 1,024 tokens."""
    torch.manual_seed(0)
    module = perturbed(catalog.get("mixer", name).constructor(16)).eval()
    x = torch.randn(1, 32, 32, 16)
    single = module(x)
    double = module.double()(x.double())
    assert (single - double).abs().max() < 1e-4 * double.abs().max()
