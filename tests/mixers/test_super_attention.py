"""Efficient, Optimised and Super attention against independent implementations."""

import pytest
import torch

from visionattn.mixers import AlignedAttention, KeyValueFreeAttention
from visionattn.reference.super_attention import naive_of
from visionattn.testing.contracts import perturbed
from visionattn.testing.fixtures import check_module, load, normal, relative_error


class OnTokens(torch.nn.Module):
    def __init__(self, mixer, prefix):
        super().__init__()
        self.mixer = mixer
        self.prefix = prefix

    def forward(self, x):
        return self.mixer.forward_tokens(x, self.mixer.grid, self.prefix)


@pytest.mark.parametrize("name", ["optimisedattn", "kvfreeattn"])
def test_golden(name):
    golden = load(f"{name}_module_2x50x48_h3_eval")
    seed = golden.meta["input_seed"]
    mixer = KeyValueFreeAttention(48, num_heads=3, bias=False, key_proj=golden.meta["constructor"]["key_proj"])
    mixer.load_state_dict(golden.state_dict)
    x = golden.input.requires_grad_()
    out = mixer.forward_tokens(x, (5, 10))
    assert relative_error(out, golden.arrays["out_0"]) < 1e-5
    (gradient,) = torch.autograd.grad((out * normal(seed + 1, out.shape)).sum(), x)
    slope = (gradient * normal(seed + 2, x.shape)).sum().item()
    assert slope == pytest.approx(golden.meta["control"]["directional_derivative"], rel=1e-4)


@pytest.mark.parametrize("key_proj", [False, True])
def test_weights_make_the_map(key_proj):
    mixer = perturbed(KeyValueFreeAttention(12, num_heads=3, key_proj=key_proj))
    x = torch.randn(2, 3, 4, 12)
    rows, values = mixer.weights(x), x.flatten(1, 2).unflatten(-1, (3, -1)).transpose(1, 2)
    assert rows.shape == (2, 3, 12, 12)
    torch.testing.assert_close(mixer.wo((rows @ values).transpose(1, 2).flatten(2)).view(x.shape), mixer(x))


def test_golden_with_a_matrix_for_each_head():
    golden = load("superattn_perhead_bias_2x50x48_h3_eval")
    mixer = AlignedAttention(48, num_heads=3, grid=7, prefix_tokens=1, per_head=True)
    mixer.load_state_dict(golden.state_dict)
    check_module(OnTokens(mixer, 1), golden, 1e-5)


def test_golden_with_one_matrix():
    golden = load("superattn_module_1x65x64_h4_eval")
    seed, x = golden.meta["input_seed"], golden.input.requires_grad_()
    mixer = AlignedAttention(64, num_heads=4, grid=8, prefix_tokens=1, bias=False)
    mixer.load_state_dict(golden.state_dict)
    out = OnTokens(mixer, 1)(x)
    assert relative_error(out, golden.arrays["out_0"]) < 1e-5
    (gradient,) = torch.autograd.grad((out * normal(seed + 1, out.shape)).sum(), x)
    slope = (gradient * normal(seed + 2, x.shape)).sum().item()
    assert slope == pytest.approx(golden.meta["control"]["directional_derivative"], rel=1e-4)


VARIANTS = {
    "efficient": {},
    "causal": {"causal": True, "key_proj": True},
    "super": {"grid": (3, 4)},
    "per head": {"grid": (3, 4), "per_head": True, "key_proj": True},
    "super causal": {"grid": (3, 4), "causal": True, "bias": False},
}


def build(variant, **kwargs):
    torch.manual_seed(0)
    given = {**VARIANTS[variant], **kwargs}
    return (AlignedAttention if "grid" in given else KeyValueFreeAttention)(12, num_heads=3, **given)


@pytest.mark.parametrize("variant", VARIANTS)
def test_agrees_with_the_formula_and_its_weights(variant):
    mixer = perturbed(build(variant)).double()
    x = torch.randn(2, 3, 4, 12, dtype=torch.float64, requires_grad=True)
    weight, results = torch.randn_like(x), []
    for one in (mixer, naive_of(mixer)):
        out = one(x)
        results.append((out, *torch.autograd.grad(out, x, weight)))
    for ours, theirs in zip(*results, strict=True):
        assert relative_error(ours, theirs) < 1e-9
    if hasattr(mixer, "align") and mixer.align.bias is not None:
        torch.nn.init.zeros_(mixer.align.bias)
    values = x.flatten(1, 2).unflatten(-1, (3, -1)).transpose(1, 2)
    rows = mixer.wo((mixer.weights(x) @ values).transpose(1, 2).flatten(2)).view(x.shape)
    torch.testing.assert_close(rows, mixer(x))


@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("size", [(3, 4), (1, 1), (5, 7), (2, 4)], ids=str)
def test_starts_as_efficient_attention_on_its_map_and_keeps_sums_on_others(size, per_head):
    mixer, plain = build("super", per_head=per_head), build("efficient")
    plain.load_state_dict(mixer.state_dict(), strict=False)
    x = torch.randn(2, *size, 12)
    if size == (3, 4):
        torch.testing.assert_close(mixer(x), plain(x))
    torch.testing.assert_close(mixer.weights(x).sum(-1), torch.ones(2, 3, size[0] * size[1]))


def test_extra_tokens():
    mixer, tokens = perturbed(build("super")), torch.randn(2, 1 + 12, 12)
    own, changed = mixer.forward_tokens(tokens, (3, 4), 1), tokens.clone()
    assert own.shape == tokens.shape
    changed[:, 0] += 1
    assert (mixer.forward_tokens(changed, (3, 4), 1) - own).abs().amax(-1).min() > 0
    mixer = perturbed(build("super", prefix_tokens=1, per_head=True))
    assert mixer.forward_tokens(torch.randn(2, 1 + 30, 12), (5, 6), 1).shape == (2, 31, 12)
    matrix, bias = mixer._matrix((5, 6), 1)
    torch.testing.assert_close(matrix[:, 0, 0], mixer.align.weight[:, 0, 0])
    torch.testing.assert_close(matrix[:, 0].sum(-1), mixer.align.weight[:, 0].sum(-1))
    assert matrix.shape == (3, 31, 31) and bias.shape == (3, 31)
    with pytest.raises(ValueError, match="prefix must be prefix_tokens=1, got 2"):
        mixer.forward_tokens(torch.randn(2, 14, 12), (3, 4), 2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_heads": 3}, "dim=8, num_heads=3"),
        ({"grid": 0}, "grid must be one integer or two .*got 0"),
        ({"prefix_tokens": -1}, "prefix_tokens must be at least 0, got -1"),
    ],
)
def test_bad_arguments_of_super_attention(given, message):
    with pytest.raises(ValueError, match=message):
        AlignedAttention(8, **{"num_heads": 4, **given})


def test_bad_arguments():
    with pytest.raises(ValueError, match="dim=8, num_heads=3"):
        KeyValueFreeAttention(8, num_heads=3)
