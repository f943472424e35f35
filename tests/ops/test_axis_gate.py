"""Gates that lack axes, and attention made of pools and gates, against the plain formulas."""

from importlib import import_module

import pytest
import torch

from visionattn.ops import axis_attention, axis_gate, axis_pools

LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
POOLS = [("mean", 3), ("max", 2)]
JOINS = {
    "product": lambda a, b, c: a * b * c,
    "sum": lambda a, b, c: a + b + c,
    "mixed": lambda a, b, c: a * b + c,
}


@pytest.fixture(autouse=True, params=[True, False], ids=["by hand", "plain"])
def by_hand(request, monkeypatch):
    if request.param:
        for module in ("axis_gate", "eager.nested_gate"):
            monkeypatch.setattr(import_module(f"visionattn.ops.{module}"), "_WORTHWHILE", 1)


def inputs(layout="nchw", *broadcast_dims):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64).contiguous(memory_format=LAYOUTS[layout])
    shapes = [[1 if axis in axes else size for axis, size in enumerate(x.shape)] for axes in broadcast_dims]
    gates = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return x.requires_grad_(), [gate.requires_grad_() for gate in gates]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("join", JOINS)
@pytest.mark.parametrize("broadcast_dims", [((3,), (2,), (2, 3)), ((1,), (2,), (3,)), ((2, 3), (1, 2), ())], ids=str)
@pytest.mark.parametrize("residual", ["none", "own", "other"])
def test_gates(layout, join, broadcast_dims, residual):
    x, gates = inputs(layout, *broadcast_dims)
    added = {"none": None, "own": x, "other": x.detach().flip(1).requires_grad_()}[residual]
    leaves = [x, *gates, *([added] if residual == "other" else [])]
    y = axis_gate(x, *gates, join=join, residual=added, relu=residual == "other")
    expected = x * JOINS[join](*gates)
    expected = expected if added is None else expected + added
    expected = expected.relu() if residual == "other" else expected
    torch.testing.assert_close(y, expected)
    assert y.stride() == x.stride()
    weight = torch.randn_like(y)
    for a, e in zip(*(torch.autograd.grad(out, leaves, weight) for out in (y, expected)), strict=True):
        torch.testing.assert_close(a, e)
    with torch.no_grad():
        before = [leaf.clone() for leaf in leaves]
        plain = axis_gate(x, *gates, join=join, residual=added, relu=residual == "other")
        torch.testing.assert_close(plain, y)
        assert all(torch.equal(leaf, value) for leaf, value in zip(leaves, before, strict=True))


def test_a_single_gate():
    x, (gate,) = inputs("nchw", (2, 3))
    torch.testing.assert_close(axis_gate(x, gate), x * gate)
    assert torch.autograd.gradcheck(lambda x, gate: axis_gate(x, gate, residual=x, relu=True), (x, gate))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_attention_is_pools_and_gate(layout):
    x, _ = inputs(layout)

    def gates(rows, columns):
        return rows.sigmoid().unsqueeze(3), columns.tanh().unsqueeze(2)

    y = axis_attention(x, POOLS, [(3,), (2,)], gates, residual=x)
    expected = x + x * x.mean(3, keepdim=True).sigmoid() * x.amax(2, keepdim=True).tanh()
    torch.testing.assert_close(y, expected)
    weight = torch.randn_like(y)
    torch.testing.assert_close(*(torch.autograd.grad(out, x, weight) for out in (y, expected)))
    assert torch.autograd.gradgradcheck(
        lambda x: axis_attention(x, POOLS, [(3,), (2,)], gates, residual=x), (x,), fast_mode=True
    )
    assert len(axis_pools(x, POOLS)) == 2


def test_keeps_the_maps_precision():
    x, gates = inputs("nchw", (3,), (2,))
    x = x.detach().bfloat16()
    assert axis_gate(x, *gates, join="sum").dtype == torch.bfloat16


def test_bad_input():
    x, (gate,) = inputs("nchw", (2, 3))
    with pytest.raises(ValueError, match=r"join must be .*, got 'sum' for 1 gates"):
        axis_gate(x, gate, join="sum")
    with pytest.raises(ValueError, match=r"join must be .*, got 'maximum' for 2 gates"):
        axis_gate(x, gate, gate, join="maximum")
    with pytest.raises(ValueError, match=r"got \(2, 3\) for \(2, 3, 4, 5\)"):
        axis_gate(x, gate.flatten(1))
    with pytest.raises(ValueError, match=r"got \(1, 3, 1, 1\) for"):
        axis_gate(x, gate[:1])
