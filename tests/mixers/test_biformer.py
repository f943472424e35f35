"""Bi-level routing attention and the last stage's attention against the official code's recorded runs."""

import sys

import pytest
import torch
from torch import nn

from visionattn.mixers import BiLevelRoutingAttention, LePEAttention
from visionattn.ops import route_regions, routed_attention
from visionattn.profiling.operator_counter import saved_bytes
from visionattn.reference.biformer import naive_of
from visionattn.testing.fixtures import check_module, load, relative_error

LEGACY = ["1x14x21x64_k4", "2x12x18x48_nwin3_k2", "stage1_1x28x28x64_k1", "stage2_1x28x28x128_k4"]
LEGACY += ["stage3_1x14x14x256_k16"]
NCHW = ["1x48x17x10_nwin3_k2", "1x64x14x21_nwin7_k4", "2x48x12x18_nwin3_k2"]


def official(golden, **kwargs):
    constructor = golden.meta["constructor"]
    mixer = BiLevelRoutingAttention(
        constructor["channels"],
        num_heads=constructor["heads"],
        n_win=constructor["n_win_per_side"],
        topk=constructor["topk"],
        lepe=constructor["lepe"],
        **kwargs,
    )
    mixer.load_state_dict(mixer.to_native(golden.state_dict))
    return mixer


@pytest.mark.parametrize("name", LEGACY)
def test_golden(name):
    golden = load(f"bra_module_{name}_eval")
    mixer = official(golden)
    check_module(mixer, golden, 1e-5)
    expected = golden.arrays["out_1"].sort(-1).values
    assert torch.equal(mixer.routing(golden.input).sort(-1).values.float(), expected)


class ChannelsFirst(nn.Module):
    """A mixer as the NCHW code has it."""

    def __init__(self, mixer):
        super().__init__()
        self.mixer = mixer

    def forward(self, x):
        return self.mixer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("name", NCHW)
def test_golden_of_the_nchw_form(name):
    golden = load(f"bra_nchw_module_{name}_eval")
    check_module(ChannelsFirst(official(golden, form="nchw")), golden, 1e-5)


@pytest.mark.parametrize("name", ["1x14x10x64", "2x7x7x64"])
def test_golden_of_the_last_stage(name):
    golden = load(f"biformer_attnlepe_module_{name}_eval")
    mixer = LePEAttention(64)
    mixer.load_state_dict(golden.state_dict)
    check_module(mixer, golden, 1e-5)


def test_convolution_of_the_values_in_the_last_stage():
    torch.manual_seed(0)
    mixer = LePEAttention(24, num_heads=3, lepe_on="values")
    x = torch.randn(2, 5, 6, 24)
    q, k, v = mixer.qkv(x.flatten(1, 2)).unflatten(-1, (3, 3, 8)).permute(2, 0, 3, 1, 4)
    out = (q @ k.mT * 8**-0.5).softmax(-1) @ v
    local = mixer.lepe(v.transpose(1, 2).reshape(2, 5, 6, 24).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    expected = mixer.proj(out.transpose(1, 2).reshape(x.shape) + local)
    torch.testing.assert_close(mixer(x), expected, rtol=1e-5, atol=1e-5)
    assert mixer.forward_tokens(torch.randn(2, 32, 24), (5, 6), prefix=2).shape == (2, 32, 24)


@pytest.mark.parametrize(
    ("size", "arguments"),
    [
        ((8, 8), {"n_win": 4, "topk": 3}),
        ((9, 7), {"n_win": 4, "topk": 2}),
        ((14, 21), {"n_win": 7, "topk": 16}),
        ((6, 6), {"n_win": 2, "topk": 4}),
        ((10, 14), {"n_win": 5, "topk": 2, "lepe": 0}),
        ((3, 5), {"n_win": 3, "topk": 1, "lepe": 5, "scale": 0.5, "qkv_bias": False}),
    ],
    ids=str,
)
@pytest.mark.parametrize("batch", [1, 3])
def test_agrees_with_the_naive_formulation(size, arguments, batch):
    torch.manual_seed(0)
    mixer = BiLevelRoutingAttention(12, num_heads=3, **arguments).double()
    naive, results = naive_of(mixer), []
    x, weight = (torch.randn(batch, *size, 12, dtype=torch.float64) for _ in range(2))
    for block in (naive, mixer):
        leaf = x.clone().requires_grad_()
        out = block(leaf)
        results.append([out, *torch.autograd.grad(out, [leaf, *block.parameters()], weight)])
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def test_both_forms_agree_where_nothing_is_padded():
    torch.manual_seed(0)
    legacy, nchw = (BiLevelRoutingAttention(16, num_heads=2, n_win=3, topk=2, form=form) for form in ("legacy", "nchw"))
    nchw.load_state_dict(legacy.state_dict())
    x = torch.randn(2, 9, 6, 16)
    torch.testing.assert_close(nchw(x), legacy(x))
    x = torch.randn(2, 10, 7, 16)
    assert relative_error(nchw(x), legacy(x)) > 1e-3
    assert nchw.routing(x).shape == (2, 16, 2) and legacy.routing(x).shape == (2, 9, 2)


def test_all_regions_and_a_heads_own_scale_are_plain_attention():
    torch.manual_seed(0)
    mixer = BiLevelRoutingAttention(16, num_heads=4, n_win=3, topk=9, lepe=0, scale=0.5)
    x = torch.randn(2, 6, 9, 16)
    q, k, v = mixer.qkv(x.flatten(1, 2)).unflatten(-1, (3, 4, 4)).permute(2, 0, 3, 1, 4)
    expected = mixer.proj(((q @ k.mT * 0.5).softmax(-1) @ v).transpose(1, 2).reshape(x.shape))
    torch.testing.assert_close(mixer(x), expected, rtol=1e-5, atol=1e-5)


def test_masks_and_copies_give_the_same(monkeypatch):
    torch.manual_seed(0)
    qkv, results = torch.randn(2, 8, 12, 36, dtype=torch.float64), []
    convolution = torch.randn(12, 1, 3, 3, dtype=torch.float64), None
    for most in (0, 1024):
        monkeypatch.setattr(sys.modules[routed_attention.__module__], "_MOST", most)
        leaf = qkv.clone().requires_grad_()
        table = route_regions(leaf, (2, 3), 5)
        out = routed_attention(leaf, table, num_heads=3, region=(2, 3), scale=0.3, convolution=convolution)
        results.append((out, *torch.autograd.grad(out.square().sum(), leaf)))
    for pair in zip(*results, strict=True):
        torch.testing.assert_close(*pair)


@pytest.mark.parametrize("size", [(6, 9), (36, 36)], ids=str)
@pytest.mark.parametrize("form", ["legacy", "nchw"])
def test_weights_are_what_it_applies(size, form):
    torch.manual_seed(0)
    mixer = BiLevelRoutingAttention(12, num_heads=3, n_win=3, topk=2, form=form).double()
    x = torch.randn(2, *size, 12, dtype=torch.float64)
    rows = mixer.weights(x)
    values = mixer.qkv(x)[..., 24:]
    local = mixer.lepe(values.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    mixed = (rows @ values.flatten(1, 2).unflatten(2, (3, 4)).transpose(1, 2)).transpose(1, 2).flatten(2)
    torch.testing.assert_close(mixer(x), mixer.proj(mixed.view(x.shape) + local))
    with torch.no_grad():  # the pass without gradients cuts the map first
        torch.testing.assert_close(mixer(x), mixer.proj(mixed.view(x.shape) + local))
    torch.testing.assert_close(rows.sum(-1), torch.ones(rows.shape[:-1]).double())
    chosen = mixer.routing(x)[0, 0].tolist()
    seen = rows[0, 0, 0].view(3, size[0] // 3, 3, size[1] // 3).sum((1, 3)).flatten()
    assert (seen > 0).nonzero().flatten().tolist() == sorted(chosen)


@pytest.mark.parametrize("form", ["legacy", "nchw"])
def test_weights_leave_out_what_is_padded(form):
    mixer = BiLevelRoutingAttention(12, num_heads=3, n_win=3, topk=2, form=form)
    rows = mixer.weights(torch.randn(2, 7, 8, 12))
    assert rows.shape == (2, 3, 56, 56) and (rows.sum(-1) < 1).any() and (rows.sum(-1) < 1.001).all()


@pytest.mark.parametrize(("side", "dim", "topk"), [(56, 64, 1), (28, 128, 4), (40, 32, 9)])
@pytest.mark.parametrize("lepe", [0, 5])
def test_without_gradients_it_is_the_same(side, dim, topk, lepe):
    torch.manual_seed(0)
    mixer = BiLevelRoutingAttention(dim, num_heads=dim // 32, n_win=7, topk=topk, lepe=lepe).eval()
    x = torch.randn(2, side, side, dim)
    expected = mixer(x)
    with torch.inference_mode():
        assert relative_error(mixer(x), expected) < 1e-6


def test_second_derivatives():
    torch.manual_seed(0)
    mixer = BiLevelRoutingAttention(4, num_heads=2, n_win=3, topk=1).double()
    x = torch.randn(1, 3, 6, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(mixer, x, fast_mode=True)


@pytest.mark.parametrize(("side", "dim", "topk", "share"), [(56, 64, 1, 0.5), (28, 128, 4, 0.35), (14, 256, 16, 0.2)])
def test_keeps_at_most_half_of_the_naive_form(side, dim, topk, share):
    mixer = BiLevelRoutingAttention(dim, num_heads=dim // 32, topk=topk, lepe=5)
    x = torch.randn(2, side, side, dim)
    assert saved_bytes(mixer, x) < share * saved_bytes(naive_of(mixer), x)


def test_large_scores_keep_their_gradients():
    """Weights that are made again from the logarithm of their sum would lose digits."""
    torch.manual_seed(0)
    mixer = BiLevelRoutingAttention(16, num_heads=2, n_win=4, topk=2, scale=300.0)
    x, results = torch.randn(1, 8, 8, 16), []
    for block in (mixer, naive_of(mixer).double()):
        leaf = x.to(next(block.parameters()).dtype).requires_grad_()
        results.append(torch.autograd.grad(block(leaf).square().sum(), leaf)[0])
    assert relative_error(*results) < 1e-3


def test_dropout_acts_in_training_only():
    mixer = BiLevelRoutingAttention(8, num_heads=2, n_win=4, topk=2, attn_drop=0.5)
    x = torch.randn(2, 8, 8, 8)
    assert not mixer(x).equal(mixer(x))
    mixer.eval()
    assert mixer(x).equal(mixer(x))


def test_official_weights_under_a_prefix():
    state = {"b.0.qkv.qkv.weight": torch.ones(6, 2), "b.0.wo.bias": torch.ones(2), "wo.bias": torch.ones(1)}
    state["b.0.output_linear.weight"] = torch.ones(2, 2, 1, 1)
    native = BiLevelRoutingAttention.to_native(state, "b.0.")
    assert set(native) == {"b.0.qkv.weight", "b.0.proj.bias", "wo.bias", "b.0.proj.weight"}
    assert native["b.0.proj.weight"].shape == (2, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": 3}, "num_heads must divide dim, got dim=8, num_heads=3"),
        ({"topk": 0}, "topk must be from 1 to the number of regions, 49, got 0"),
        ({"topk": 50}, "topk must be from 1 to the number of regions, 49, got 50"),
        ({"n_win": 0}, "n_win must be at least 1, got 0"),
        ({"lepe": 4}, "lepe must be a positive odd number, got 4"),
        ({"form": "nhwc"}, "form must be one of legacy, nchw, got 'nhwc'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        BiLevelRoutingAttention(8, **{"num_heads": 2} | arguments)


def test_regions_larger_than_the_map():
    mixer = BiLevelRoutingAttention(8, num_heads=2, form="nchw")
    with pytest.raises(ValueError, match=r"n_win must be at most the sides of the map .* got n_win=7 and .* 9 x 5"):
        mixer(torch.randn(1, 9, 5, 8))


@pytest.mark.parametrize(
    ("arguments", "message"), [({"lepe": 2}, "lepe"), ({"lepe_on": "keys"}, "lepe_on must be one of input, values")]
)
def test_bad_arguments_of_the_last_stage(arguments, message):
    with pytest.raises(ValueError, match=message):
        LePEAttention(8, **arguments)
