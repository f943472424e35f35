"""BiDAF against its fixture, its formula, and what masks promise."""

import pytest
import torch

from visionattn.heads import CoAttention
from visionattn.reference.bidaf import naive_of
from visionattn.testing.fixtures import load, relative_error


def test_agrees_with_the_fixture():
    golden = load("bidaf_2x12_9x16_eval")
    module = CoAttention(golden.meta["constructor"]["dim"])
    module.load_state_dict(golden.state_dict)
    others = (golden.arrays[f"in_{name}"] for name in ("b", "mask_a", "mask_b"))
    for number, out in enumerate(module(golden.input, *others)):
        assert relative_error(out, golden.arrays[f"out_{number}"]) < 1e-5


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("switches", [{}, {"c2q": False}, {"q2c": False}], ids=str)
def test_agrees_with_the_formula(switches, masked):
    torch.manual_seed(0)
    module = CoAttention(6, **switches).double()
    a, b = (torch.randn(3, n, 6, dtype=torch.float64, requires_grad=True) for n in (5, 4))
    masks = [torch.rand(3, n) > 0.4 for n in (5, 4)] if masked else []
    if masked:
        masks[1][0] = False  # nothing left
    results = []
    for one in (module, naive_of(module)):
        out, rows, to_all = one(a, b, *masks)
        loss = out.sin().sum() + rows.square().sum() + to_all.square().sum()
        gradients = torch.autograd.grad(loss, (a, b, *one.parameters()), allow_unused=True)
        results.append((out, rows, to_all, *(g for g in gradients if g is not None)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    assert results[0][0].shape == (3, 5, module.out_features)


def test_masked_tokens_are_not_seen():
    torch.manual_seed(0)
    module, a, b = CoAttention(8), torch.randn(2, 6, 8), torch.randn(2, 5, 8)
    mask_a, mask_b = torch.ones(2, 6).bool(), torch.ones(2, 5).bool()
    mask_a[:, 4:] = mask_b[:, 3:] = False
    out, rows, to_all = module(a, b, mask_a, mask_b)
    shorter = module(a[:, :4], b[:, :3])
    torch.testing.assert_close(out[:, :4], shorter[0])
    torch.testing.assert_close(rows[:, :4, :3], shorter[1])
    torch.testing.assert_close(to_all[:, :4], shorter[2])
    assert not rows[:, :4, 3:].any() and not to_all[:, 4:].any()


def test_no_pairs_of_features_and_other_precisions():
    module, a, b = CoAttention(8), torch.randn(2, 6, 8), torch.randn(2, 5, 8)
    expected = module(a, b)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")(a, b)
    half = module.bfloat16()(a.bfloat16(), b.bfloat16())
    for ours, graph, low in zip(expected, compiled, half, strict=True):
        torch.testing.assert_close(ours, graph)
        assert low.dtype == torch.bfloat16 and relative_error(low, ours) < 0.05
    assert CoAttention(8, device="meta")(a.to("meta"), b.to("meta"))[0].shape == (2, 6, 32)


def test_exports_for_any_number_of_tokens():
    module, dynamic = CoAttention(8), torch.export.Dim.DYNAMIC
    sides = {0: dynamic, 1: dynamic}
    inputs = torch.randn(2, 6, 8), torch.randn(2, 5, 8)
    program = torch.export.export(module, inputs, dynamic_shapes=(sides, sides))
    a, b = torch.randn(3, 9, 8), torch.randn(3, 7, 8)
    torch.testing.assert_close(program.module()(a, b), module(a, b))


def test_bad_input():
    with pytest.raises(ValueError, match="dim must be at least 1, got 0"):
        CoAttention(0)
    module, a, b = CoAttention(8), torch.randn(2, 6, 8), torch.randn(2, 5, 8)
    for message, given in {
        r"b must be \(2, tokens, 8\), .* got \(1, 5, 8\)": (a, b[:1]),
        r"b must be .* got \(2, 5, 4\)": (a, b[..., :4]),
        r"a must be .* got \(2, 0, 8\)": (a[:, :0], b),
        r"mask_a must be \(2, 6\), got \(2, 5\)": (a, b, torch.ones(2, 5)),
        r"mask_b must be \(2, 5\), got \(2, 6\)": (a, b, None, torch.ones(2, 6)),
    }.items():
        with pytest.raises(ValueError, match=message):
            module(*given)
