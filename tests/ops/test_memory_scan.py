"""The memory in parallel blocks against the recurrence, one token after the other."""

import pytest
import torch

from visionattn.ops import memory_scan
from visionattn.reference.titans import memory_recurrence
from visionattn.testing.fixtures import relative_error


def sequences(length, dtype, *, momentum=0.0):
    generator = torch.Generator().manual_seed(length)

    def draw(*shape):
        return torch.randn(2, 3, length, *shape, generator=generator, dtype=dtype)

    q, k = (torch.nn.functional.normalize(draw(5), dim=-1) for _ in range(2))
    gates = [draw() - 1, draw() + momentum, draw() - 3]
    memory = torch.randn(3, 5, 4, generator=generator, dtype=dtype)
    return [part.requires_grad_() for part in (q, k, draw(4), *gates, memory)]


def parallel(q, k, v, step, momentum, decay, memory, chunk):
    logs = torch.nn.functional.logsigmoid(momentum), torch.nn.functional.logsigmoid(-decay)
    return memory_scan(q, k, v, step.sigmoid(), *logs, memory, chunk=chunk)


def literal(q, k, v, step, momentum, decay, memory, chunk):
    return memory_recurrence(q, k, v, step.sigmoid(), momentum.sigmoid(), 1 - decay.sigmoid(), memory, chunk)


@pytest.mark.parametrize("chunk", [1, 3, 5, 16, 64, 100, 197, 1000])
@pytest.mark.parametrize("length", [1, 2, 20, 64, 197, 300])
def test_equals_the_recurrence(length, chunk):
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        parts, results = sequences(length, dtype), []
        for scan in (parallel, literal):
            out, errors = scan(*parts, chunk)
            weights = [torch.linspace(-1, 1, out.numel(), dtype=dtype).view_as(out).sin() for _ in range(2)]
            loss = (out * weights[0]).sum() + (errors * weights[1].flip(-1)).sum()
            grads = torch.autograd.grad(loss, parts, allow_unused=True, materialize_grads=True)
            results.append((out, errors, *grads))
        for ours, theirs in zip(*results, strict=True):
            assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max().clamp(min=1)


def test_long_memories_of_like_keys_stay_exact():
    """Where each token corrects all before it: the inverse has to be substitution, not a series of powers."""
    parts = [part.detach() for part in sequences(256, torch.float32, momentum=2.0)]
    parts[1] = torch.nn.functional.normalize(1 + 0.1 * parts[1], dim=-1)
    exact = literal(*(part.double() for part in parts), 1)[0]
    assert relative_error(parallel(*parts, 1)[0], exact) < 1e-4


def test_half_precision_is_computed_in_float32():
    parts = [part.detach().bfloat16() for part in sequences(70, torch.float32)]
    with torch.autocast("cpu", torch.bfloat16):
        out, _ = memory_scan(*parts[:3], *(-part.abs() for part in parts[3:6]), parts[6], chunk=4)
    assert out.dtype == torch.float32
    expected, _ = memory_scan(*(p.float() for p in (*parts[:3], *(-p.abs() for p in parts[3:6]), parts[6])), chunk=4)
    assert relative_error(out, expected) < 1e-5


def test_bad_arguments():
    with pytest.raises(ValueError, match="chunk must be at least 1, got 0"):
        parallel(*sequences(3, torch.float32), 0)
