"""Some queries at a time: the same results, and no more held than asked for."""

import pytest
import torch

from visionattn.ops.query_tiles import in_tiles
from visionattn.profiling.peak_memory import peak_bytes


def attend(q, k, held, drop=0.0, seen=None, kept=0):
    def some_queries(some, own):
        if seen is not None:
            seen.append((some.start, some.stop))
            assert torch.equal(own, q[some])
        return torch.dropout((own @ k.mT).softmax(-1), drop, drop > 0) @ k

    return torch.cat(in_tiles(some_queries, (q,), len(k), dim=0, held=held, kept=kept, random=drop > 0))


@pytest.mark.parametrize(
    ("held", "expected"),
    [
        (0, [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]),
        (15, [(0, 2), (2, 4), (4, 5)]),
        (34, [(0, 4), (4, 5)]),
        (35, [(0, 5)]),
    ],
)
def test_runs_hold_what_is_allowed_and_change_nothing(held, expected):
    torch.manual_seed(0)
    q, k = (torch.randn(n, 3, dtype=torch.float64, requires_grad=True) for n in (5, 7))
    seen = []
    out = attend(q, k, held, seen=seen)
    assert seen == expected
    whole = (q @ k.mT).softmax(-1) @ k
    weight = torch.randn_like(out)
    torch.testing.assert_close(out, whole)
    torch.testing.assert_close(attend(q, k, held, kept=35), whole)
    for ours, theirs in zip(*(torch.autograd.grad(o, (q, k), weight) for o in (out, whole)), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_gradients_are_those_of_the_same_dropout():
    torch.manual_seed(0)
    q, k = (torch.randn(n, 3, dtype=torch.float64, requires_grad=True) for n in (5, 7))
    state = torch.get_rng_state()

    def run(q, k):
        torch.set_rng_state(state)
        return attend(q, k, 15, drop=0.5)

    assert torch.autograd.gradcheck(run, (q, k))


def test_pairs_are_not_all_held():
    q = torch.randn(400, 8, requires_grad=True)
    k = torch.randn(400, 8)
    some, kept, all_at_once = (
        peak_bytes(lambda held=held, kept=kept: attend(q, k, held, kept=kept).sum().backward())
        for held, kept in ((10 * 400, 400 * 400 - 1), (10 * 400, 400 * 400), (400 * 400, 0))
    )
    assert some < 0.25 * kept <= all_at_once and kept > 4 * 400 * 400


def test_exported_graphs_have_one_run():
    k = torch.randn(7, 3)

    class Module(torch.nn.Module):
        def forward(self, q):
            return attend(q, k, 14)

    q = torch.randn(5, 3)
    program = torch.export.export(Module(), (q,))
    assert sum(node.target is torch.ops.aten.cat.default for node in program.graph.nodes) == 1
    assert sum("softmax" in str(node.target) for node in program.graph.nodes) == 1
    torch.testing.assert_close(program.module()(q), attend(q, k, 14))
