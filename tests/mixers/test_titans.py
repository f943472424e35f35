"""The memory of Titans against the recorded outputs and gradients of a literal implementation, and what it learns."""

import pytest
import timm
import torch

from visionattn.mixers import TitansMemory
from visionattn.reference.titans import naive_of
from visionattn.testing.contracts import perturbed
from visionattn.testing.fixtures import check_module, load, relative_error


def test_golden():
    golden = load("titans_2x4x5x32_c5_eval")
    made = dict(golden.meta["constructor"])
    module = TitansMemory(made.pop("dim"), num_heads=made.pop("heads"), **made)
    module.load_state_dict(golden.state_dict)
    check_module(module, golden, 1e-5)


@pytest.mark.parametrize("size", [(4, 7), (1, 1), (3, 2)], ids=str)
@pytest.mark.parametrize("directions", [1, 2, 4])
@pytest.mark.parametrize("chunk", [1, 5, 28])
def test_agrees_with_the_recurrence(chunk, directions, size):
    torch.manual_seed(0)
    module = perturbed(TitansMemory(12, num_heads=3, chunk=chunk, directions=directions, max_step=0.7)).double()
    x = torch.randn(2, *size, 12, dtype=torch.float64, requires_grad=True)
    weight, results = torch.randn_like(x), []
    for one in (module, naive_of(module)):
        out = one(x)
        results.append((out, *torch.autograd.grad(out, x, weight)))
    for ours, theirs in zip(*results, strict=True):
        assert relative_error(ours, theirs) < 1e-9


def test_turns_with_the_map():
    torch.manual_seed(0)
    x = torch.randn(2, 4, 5, 12)
    for directions in (2, 4):
        module = TitansMemory(12, num_heads=3, chunk=3, directions=directions)
        torch.testing.assert_close(module(x.flip(1, 2)), module(x).flip(1, 2))
    row = x[:, :1]
    torch.testing.assert_close(module(row.flip(2)), module(row).flip(2))
    torch.testing.assert_close(module(x.transpose(1, 2)), module(x).transpose(1, 2))


def test_weights_are_what_is_applied():
    torch.manual_seed(0)
    module = perturbed(TitansMemory(12, num_heads=3, chunk=4)).double()
    module.memory.data.zero_()
    x = torch.randn(2, 3, 4, 12, dtype=torch.float64)
    rows = module.weights(x)
    assert rows.shape == (2, 3, 12, 12)
    values = torch.nn.functional.silu(module.v(x)).flatten(1, 2).unflatten(-1, (3, -1)).transpose(1, 2)
    out = module.norm(rows @ values).transpose(1, 2).flatten(2)
    torch.testing.assert_close(module.proj(out).view(x.shape), module(x))


def test_recalls_what_was_learnt():
    """Pairs of keys and values, one after the other: the online rule reads each value back, and is surprised less."""
    torch.manual_seed(0)
    module = TitansMemory(8, num_heads=1, chunk=1, directions=1, max_step=4.0)
    with torch.no_grad():
        for layer, bias in ((module.step, 100.0), (module.momentum, -100.0), (module.decay, -100.0)):
            layer.weight.zero_()
            layer.bias.fill_(bias)
        module.memory.zero_()
    seen = 5
    with torch.no_grad():  # keys of unit vectors: silu(100) is 100, and divided by its length 1
        module.k.weight.copy_(100 * torch.eye(8))
        module.v.weight.copy_(torch.eye(8))
    keys = torch.eye(8)[:seen].repeat(4, 1).view(1, 1, 4 * seen, 8)
    surprise = module.surprise(keys)[0, 0, 0].view(4, seen)
    assert (surprise[1:] < 1e-3 * surprise[0]).all()


def test_a_memory_of_one_chunk_is_surprised_by_all_alike():
    """With errors from the memory at the start, nothing learnt on the way makes a difference to them."""
    module = TitansMemory(8, num_heads=1, chunk=100, directions=1)
    x = torch.randn(1, 1, 1, 8).expand(1, 4, 5, 8)
    surprise = module.surprise(x)
    torch.testing.assert_close(surprise, surprise[..., :1].expand_as(surprise))
    module.chunk = 4
    learnt = module.surprise(x)[0, 0, 0].view(5, 4)
    torch.testing.assert_close(learnt, learnt[:, :1].expand(5, 4))
    assert (learnt[1:, 0] < learnt[:-1, 0]).all()


def test_starts_as_it_says():
    """In a host too, which gives other projections a bias of zero."""
    for module in (TitansMemory(16, num_heads=2), timm.create_model("va_vit_titans_nano").blocks[0].attn.fn):
        assert (module.step.bias == -2).all() and (module.momentum.bias == 0).all() and (module.decay.bias == -4).all()
        assert 0 < module.memory.std() < 0.03


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": 3}, "dim=8, num_heads=3"),
        ({"chunk": 0}, "chunk must be at least 1, got 0"),
        ({"max_step": 0.0}, r"max_step must be greater than 0, got 0\.0"),
        ({"directions": 3}, "directions must be one of 1, 2, 4, got 3"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        TitansMemory(8, **arguments)
