"""ReGLA against the recorded outputs and gradients of a literal implementation, and what the paper says of its gate."""

import pytest
import timm
import torch

from visionattn.mixers import ReGLA
from visionattn.reference.regla import naive_of
from visionattn.testing.contracts import perturbed
from visionattn.testing.fixtures import check_module, load, relative_error

FIXTURES = ("regla_2dir_2x4x5x32_eval", "regla_4dir_1x5x3x32_eval")


@pytest.mark.parametrize("name", FIXTURES)
@pytest.mark.parametrize("chunk", [1, 4, 64])
def test_golden(name, chunk):
    golden = load(name)
    made = golden.meta["constructor"]
    module = ReGLA(
        made["dim"],
        num_heads=made["heads"],
        directions=made["directions"],
        refined=made["refined"],
        chunk=chunk,
    )
    module.load_state_dict(golden.state_dict)
    check_module(module, golden, 1e-5)


@pytest.mark.parametrize("directions", [1, 2, 4])
@pytest.mark.parametrize("refined", [True, False])
def test_agrees_with_the_recurrence(directions, refined):
    torch.manual_seed(0)
    module = perturbed(ReGLA(12, num_heads=3, directions=directions, refined=refined, chunk=4)).double()
    x = torch.randn(2, 4, 7, 12, dtype=torch.float64, requires_grad=True)
    weight, results = torch.randn_like(x), []
    for one in (module, naive_of(module)):
        out = one(x)
        results.append((out, *torch.autograd.grad(out, x, weight)))
    for ours, theirs in zip(*results, strict=True):
        assert relative_error(ours, theirs) < 1e-9


def test_two_directions_turn_with_the_map_and_four_mirror_too():
    torch.manual_seed(0)
    x = torch.randn(2, 4, 5, 12)
    two, four = (ReGLA(12, num_heads=3, directions=n) for n in (2, 4))
    torch.testing.assert_close(two(x.flip(1, 2)), two(x).flip(1, 2))
    torch.testing.assert_close(four(x.flip(1, 2)), four(x).flip(1, 2))
    torch.testing.assert_close(four(x.transpose(1, 2)), four(x).transpose(1, 2))
    row = torch.randn(2, 1, 9, 12)
    torch.testing.assert_close(two(row.flip(2)), two(row).flip(2))


def test_weights_are_what_is_applied():
    torch.manual_seed(0)
    module = perturbed(ReGLA(12, num_heads=3)).double()
    x = torch.randn(2, 3, 4, 12, dtype=torch.float64)
    rows = module.weights(x)
    assert rows.shape == (2, 3, 12, 12) and (rows > 0).all()
    out = rows @ module.v(x).flatten(1, 2).unflatten(-1, (3, -1)).transpose(1, 2)
    out = module.norm(out).transpose(1, 2).flatten(2)
    torch.testing.assert_close(module.proj(out).view(x.shape), module(x))


def test_one_direction_is_causal_and_gates_say_how_far_it_sees():
    module = ReGLA(8, num_heads=1, directions=1, refined=False)
    x = torch.randn(1, 3, 4, 8)
    assert torch.equal(module.weights(x)[0, 0].triu(1), torch.zeros(12, 12))
    for bias, reach in ((-100.0, 0), (100.0, 11)):
        module.gate.bias.data.fill_(bias)
        rows = module.weights(x)[0, 0]
        assert (rows.tril(-1) > 0).sum() == reach * 12 / 2


def test_the_refined_gate_learns_where_it_is_saturated():
    refined, plain = (ReGLA(8, num_heads=1, refined=refined) for refined in (True, False))
    x, grads = torch.randn(1, 1, 64, 8), []
    for module in (refined, plain):
        with torch.no_grad():
            module.gate.weight.zero_()
            module.gate.bias.fill_(8.0)
            if module.refine is not None:
                module.refine.weight.zero_()
        (grad,) = torch.autograd.grad(module.decay(x).sum(), module.gate.bias)
        grads.append(grad)
    assert torch.equal(refined.decay(x) < 1, torch.ones_like(x, dtype=torch.bool))
    # With r = 1/2 the refined gate is g itself; away from it, its slope in g is between 0 and 2 and not 0 at the ends.
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-3, atol=1e-6)
    refined.refine.bias.data.fill_(-3.0)
    (steeper,) = torch.autograd.grad(refined.decay(x).sum(), refined.gate.bias)
    assert (steeper > 1.8 * grads[1]).all()


def test_starts_with_gates_from_fast_to_slow():
    """In a host too, which gives other projections a bias of zero."""
    network = timm.create_model("va_vit_regla_nano")
    module = network.blocks[1].attn.fn
    size = module.norm.weight.numel()
    torch.testing.assert_close(module.gate.bias.view(-1, size), torch.linspace(2, 6, size).expand(module.num_heads, -1))
    module = ReGLA(16, num_heads=2)
    torch.testing.assert_close(module.gate.bias.view(2, 8), torch.linspace(2, 6, 8).expand(2, 8))
    assert (module.refine.bias == 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": 3}, "dim=8, num_heads=3"),
        ({"directions": 3}, "directions must be one of 1, 2, 4, got 3"),
        ({"chunk": 0}, "chunk must be at least 1, got 0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ReGLA(8, **arguments)
