"""The scan in chunks against the recurrence, one token after the other."""

import pytest
import torch

from visionattn.ops import cross_merge, cross_scan, gated_scan, linear_recurrence
from visionattn.reference.regla import gated_recurrence
from visionattn.testing.fixtures import relative_error


def sequences(length, dtype, *, hard=False):
    generator = torch.Generator().manual_seed(length)
    q, k, decay = (torch.rand(2, 3, length, 5, generator=generator, dtype=dtype) for _ in range(3))
    v = torch.randn(2, 3, length, 4, generator=generator, dtype=dtype)
    # Gates of a network: most near 1, and if hard some that leave nothing at all.
    decay = decay ** (0.05 if not hard else 8)
    return [part.requires_grad_() for part in (q, k, v, torch.where(decay < 1e-6, 0.0, decay))]


def both(scan, expected, parts):
    weight, results = None, []
    for one in (scan, expected):
        out = one(*parts)
        weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(0), dtype=out.dtype)
        # A single token has nothing to fade.
        grads = torch.autograd.grad(out, parts, weight, allow_unused=True, materialize_grads=True)
        results.append((out, *grads))
    return zip(*results, strict=True)


@pytest.mark.parametrize("hard", [False, True], ids=["gates near 1", "gates that are 0"])
@pytest.mark.parametrize("chunk", [1, 3, 8, 64])
@pytest.mark.parametrize("length", [1, 2, 7, 64, 197])
def test_equals_the_recurrence(length, chunk, hard):
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        parts = sequences(length, dtype, hard=hard)
        for ours, theirs in both(lambda *p: gated_scan(*p, chunk=chunk), gated_recurrence, parts):
            assert ours.isfinite().all() and (ours - theirs).abs().max() <= tolerance * theirs.abs().max().clamp(min=1)


def test_half_precision_is_computed_in_float32():
    parts = [part.detach().bfloat16() for part in sequences(70, torch.float32)]
    with torch.autocast("cpu", torch.bfloat16):
        out = gated_scan(*parts)
    assert out.dtype == torch.float32
    assert relative_error(out, gated_recurrence(*(part.float() for part in parts))) < 1e-5


@pytest.mark.parametrize("length", range(1, 10))
def test_linear_recurrence(length):
    decay, added = torch.rand(2, length, 3, 1).double(), torch.randn(2, length, 3, 2).double()
    state, expected = torch.zeros(2, 3, 2).double(), []
    for t in range(length):
        state = decay[:, t] * state + added[:, t]
        expected.append(state)
    torch.testing.assert_close(linear_recurrence(decay, added), torch.stack(expected, 1))


@pytest.mark.parametrize("directions", [1, 2, 4])
def test_orders_of_a_map(directions):
    x = torch.arange(6.0).view(1, 2, 3, 1)
    orders = [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [0, 3, 1, 4, 2, 5], [5, 2, 4, 1, 3, 0]]
    scanned = cross_scan(x, directions)
    assert scanned[:, 0, :, 0].tolist() == orders[:directions]
    torch.testing.assert_close(cross_merge(scanned, (2, 3)), directions * x)


def test_bad_arguments():
    x = torch.rand(1, 2, 3)
    with pytest.raises(ValueError, match="chunk must be at least 1, got 0"):
        gated_scan(x, x, x, x, chunk=0)
    with pytest.raises(ValueError, match="directions must be one of 1, 2, 4, got 3"):
        cross_scan(torch.rand(1, 2, 2, 3), 3)
    with pytest.raises(ValueError, match="directions must be one of 1, 2, 4, got 3"):
        cross_merge(torch.rand(3, 1, 4, 3), (2, 2))
