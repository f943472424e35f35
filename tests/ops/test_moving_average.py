"""Mega's moving average as a convolution against its recurrence."""

import pytest
import torch

from visionattn.mixers._ema import DampedEMA
from visionattn.ops import ema_kernel, moving_average
from visionattn.reference.mega import moving_average as recurrence
from visionattn.testing.fixtures import relative_error


@pytest.mark.parametrize("both", [True, False], ids=["both ends", "causal"])
@pytest.mark.parametrize("length", [1, 2, 9, 64, 400])
def test_equals_the_recurrence(length, both):
    torch.manual_seed(length)
    average = DampedEMA(3, ndim=5, bidirectional=both)
    for parameter in average.parameters():
        torch.nn.init.normal_(parameter)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        average = average.to(dtype)
        x = torch.randn(2, 1, length, 3, dtype=dtype, requires_grad=True)
        leaves, results = (x, *average.parameters()), []
        weight = torch.randn_like(x)
        columns = average(x.transpose(1, 2), 1).transpose(1, 2)
        for out in (average(x), recurrence(x.flatten(0, 1), average).view(x.shape), columns):
            results.append((out, *torch.autograd.grad(out, leaves, weight)))
        for ours, theirs, by_column in zip(*results, strict=True):
            scale = theirs.abs().max().clamp(min=1)
            assert (ours - theirs).abs().max() <= tolerance * scale
            assert (by_column - theirs).abs().max() <= tolerance * scale


def test_kernel_is_finite_where_everything_is_damped_at_once():
    shape = (1, 1, 1)
    for value, expected in ((60.0, [1.0, 0.0, 0.0]), (-200.0, [0.0, 0.0, 0.0])):
        delta = torch.full(shape, value, requires_grad=True)
        taps = ema_kernel(delta, torch.full(shape, abs(value)), torch.ones(shape), torch.ones(1, 1), 3)
        torch.testing.assert_close(taps[0], torch.tensor(expected))
        assert torch.autograd.grad(taps.sum(), delta)[0].isfinite().all()


def test_truncation_cuts_the_memory():
    average = DampedEMA(2, ndim=3, bidirectional=False)
    spike = torch.zeros(1, 1, 9, 2)
    spike[:, :, 2] = 1
    average.truncation = 4
    out = average(spike)[0, 0]
    assert (out[2:6] != 0).all() and out[:2].abs().max() < 1e-6 and out[6:].abs().max() < 1e-6


def test_is_float32_whatever_it_gets():
    average = DampedEMA(2).bfloat16()
    x = torch.randn(1, 3, 4, 2).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        out = average(x)
    assert out.dtype == torch.float32 and relative_error(out, average.float()(x.float())) < 1e-6


def test_bad_arguments():
    parameters = (torch.ones(4, 1, 1), torch.ones(4, 1, 1), torch.ones(4, 1, 1), torch.ones(4, 1))
    with pytest.raises(ValueError, match="axis must be 1 or 2, got 0"):
        moving_average(torch.ones(1, 1, 1, 4), *parameters, axis=0)
    with pytest.raises(ValueError, match="gamma must have 3 rows or twice as many, as the map has channels, got 4"):
        moving_average(torch.ones(1, 1, 1, 3), *parameters)
    with pytest.raises(ValueError, match="truncation must be at least 1, got 0"):
        DampedEMA(3, truncation=0)
