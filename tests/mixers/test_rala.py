"""Rank-augmented linear attention against the official code's recorded outputs and gradients."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from visionattn.mixers import RankAugmentedLinearAttention
from visionattn.ops.rank_augmented_attention import formula, rank_augmented_attention, rotation_tables
from visionattn.profiling.operator_counter import saved_bytes
from visionattn.reference.rala import naive_of
from visionattn.testing.contracts import perturbed
from visionattn.testing.fixtures import check_module, load, relative_error


class ChannelsFirst(nn.Module):
    """Runs a mixer on `(B, C, H, W)`, as the official modules are."""

    def __init__(self, mixer):
        super().__init__()
        self.mixer = mixer

    def forward(self, x):
        return self.mixer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    ("form", "shape"), [("linear", "2x64x14x14"), ("softmax", "2x64x14x14"), ("softmax", "1x48x17x9")]
)
def test_golden(form, shape):
    golden = load(f"rala_{form}_module_{shape}_eval")
    official = golden.meta["constructor"]
    mixer = RankAugmentedLinearAttention(
        official["channels"], num_heads=official["heads"], softmax=form == "softmax", kernel_size=official["lepe"]
    )
    mixer.load_state_dict(golden.state_dict)
    check_module(ChannelsFirst(mixer), golden, 1e-5)


@pytest.mark.parametrize("shape", [(1, 1, 4), (3, 5, 8), (2, 48, 24), (5, 900, 64)], ids=str)
def test_passes_by_hand_are_the_formula(shape):
    """Of maps of which many, some and none fit into what is worked on at a time."""
    torch.manual_seed(0)
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    tables = rotation_tables((1, shape[1]), shape[2] // 2 if shape[2] > 4 else 4, like=inputs[0])
    num_heads, weight, results = 2 if shape[2] > 4 else 1, torch.randn(shape, dtype=torch.float64), []
    for out in (
        rank_augmented_attention(*inputs, *tables, num_heads=num_heads),
        formula(*inputs, *tables, num_heads),
    ):
        results.append((out, *torch.autograd.grad(out, inputs, weight)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_results_fit_where_they_are_written():
    """PyTorch warns of a result that it has to give another shape, and will refuse it one day."""
    inputs = [torch.randn(3, 6, 8, requires_grad=True) for _ in range(3)]
    tables = rotation_tables((2, 3), 4, like=inputs[0])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "An output with one or more elements was resized")
        rank_augmented_attention(*inputs, *tables, num_heads=2).sum().backward()


def test_second_derivatives():
    torch.manual_seed(0)
    inputs = [torch.randn(2, 6, 8, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    tables = rotation_tables((2, 3), 4, like=inputs[0])
    assert torch.autograd.gradgradcheck(
        lambda *qkv: rank_augmented_attention(*qkv, *tables, num_heads=2), inputs, fast_mode=True
    )


@pytest.mark.parametrize("softmax", [False, True])
def test_weights_are_what_it_applies(softmax):
    torch.manual_seed(0)
    module = perturbed(RankAugmentedLinearAttention(16, num_heads=2, softmax=softmax)).double()
    x = torch.randn(2, 3, 5, 16, dtype=torch.float64)
    rows = module.weights(x)
    assert rows.shape == (2, 2, 15, 15)
    _, _, v, gate = F.linear(x, module.qkvo.weight.flatten(1), module.qkvo.bias).chunk(4, dim=-1)
    out = (rows @ v.flatten(1, 2).unflatten(2, (2, -1)).transpose(1, 2)).transpose(1, 2).flatten(2).view(x.shape)
    out = (out + module.lepe(v.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)) * gate
    expected = F.linear(out, module.proj.weight.flatten(1), module.proj.bias)
    assert relative_error(module(x), expected) < 1e-10


def test_weighting_the_keys_raises_the_rank_of_the_summary():
    """What the paper promises of it: the keys of a map that is nearly flat are told apart."""
    torch.manual_seed(0)
    q = torch.randn(1, 64, 16, dtype=torch.float64) + 2
    k = 1 + 0.02 * torch.randn(1, 64, 16, dtype=torch.float64)
    k[:, 5] += 6
    v = torch.randn(1, 64, 16, dtype=torch.float64)
    tables = rotation_tables((8, 8), 16, like=q)
    augmented = rank_augmented_attention(q, k, v, *tables, num_heads=1)
    focus = (F.elu(q).mean(1, keepdim=True) + 1) @ (F.elu(k) + 1).mT
    assert focus.argmax() == 5
    # The outlier is nearly all that is seen, where plain linear attention blurs it with 63 others.
    assert F.cosine_similarity(augmented.mean(1), v[:, 5]).abs() > 0.5


@pytest.mark.parametrize("softmax", [False, True])
def test_extra_tokens_take_part(softmax):
    torch.manual_seed(0)
    module = RankAugmentedLinearAttention(8, num_heads=2, softmax=softmax)
    tokens = torch.randn(2, 1 + 6, 8)
    out, without = module.forward_tokens(tokens, (2, 3), prefix=1), module.forward_tokens(tokens[:, 1:], (2, 3))
    assert out.shape == tokens.shape and not torch.allclose(out[:, 1:], without)
    torch.testing.assert_close(without, module(tokens[:, 1:].unflatten(1, (2, 3))).flatten(1, 2))


def test_keeps_little_for_the_backward_pass():
    module, x = RankAugmentedLinearAttention(64, num_heads=1), torch.randn(2, 28, 28, 64)
    assert saved_bytes(module, x) < 0.6 * saved_bytes(naive_of(module), x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 24, "num_heads": 4}, "multiples of 4 .*, got dim=24, num_heads=4"),
        ({"dim": 24, "num_heads": 0}, "num_heads=0"),
        ({"dim": 8, "num_heads": 2, "kernel_size": 4}, "kernel_size must be a positive odd number, got 4"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        RankAugmentedLinearAttention(**arguments)
