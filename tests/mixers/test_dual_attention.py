"""Dual attention against the official code's recorded results and the formula that forms all relations."""

from importlib import import_module

import pytest
import torch
from largest import LargestTensor

from visionattn import catalog
from visionattn.mixers import DualAttention, Tokens
from visionattn.mixers._symbols import PositionalSymbols, RelationalSymbols
from visionattn.reference.dual_attention import naive_of
from visionattn.testing.contracts import perturbed
from visionattn.testing.fixtures import check_module, load, relative_error

CARD = catalog.get("mixer", "dual_attention")
ACTIVATIONS = ("identity", "relu", "sigmoid", "tanh", "gelu", "silu", "softmax")


@pytest.mark.parametrize(
    "name", ["symbolic_2x50x48_sa2_ra2", "symmetric_1x70x64_sa1_ra3_nr6", "posrel_1x49x48_sa2_ra2"]
)
def test_golden(name):
    golden = load(f"dat_{name}_eval")
    official = golden.meta["constructor"]
    if "n_symbols" in official:
        symbols = {"type": "symbolic", "num_heads": official["symbol_heads"], "num_symbols": official["n_symbols"]}
    else:
        symbols = {"type": "relative", "max_rel_pos": official["max_rel_pos"]}
    mixer = DualAttention(
        official["dim"],
        num_heads_self=official["heads_sa"],
        num_heads_rel=official["heads_ra"],
        num_relations=official["relations"],
        symmetric=official.get("symmetric", False),
        rel_activation=official.get("rel_activation", "identity"),
        symbols=symbols,
    )
    mixer.load_state_dict(mixer.to_native(golden.state_dict))
    check_module(Tokens(mixer, (1, golden.input.shape[1])), golden, 1e-5)


def compare(mixer, x):
    results = []
    for one in (mixer, naive_of(mixer)):
        out = one(x)
        results.append((out, *torch.autograd.grad(out.square().sum(), x)))
    for ours, literal in zip(*results, strict=True):
        assert relative_error(ours, literal) < 1e-9


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("held", "few"), [(1, 0), (1 << 22, 0), (1 << 22, 1 << 20)])
def test_every_activation_agrees_with_the_formula(activation, held, few, monkeypatch):
    room = import_module("visionattn.ops.relational_attention")
    monkeypatch.setattr(room, "_HELD", held)  # queries at a time
    monkeypatch.setattr(room, "_FEW", few)
    mixer = DualAttention(12, num_heads_self=1, num_heads_rel=2, num_relations=4, rel_activation=activation)
    compare(perturbed(mixer).double(), torch.randn(2, 3, 4, 12, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize("case", CARD.cases)
@pytest.mark.parametrize("size", [(1, 1), (4, 5)], ids=str)
def test_every_variant_agrees_with_the_formula(case, size):
    mixer = perturbed(DualAttention(24, **CARD.cases[case])).double()
    compare(mixer, torch.randn(2, *size, 24, dtype=torch.float64, requires_grad=True))


def test_official_names_of_shared_parameters():
    mixer = DualAttention(8, num_heads_self=2, num_heads_rel=2, share_attn_params=True, symmetric=True)
    names = {"wq_attn": "self_attention.wq", "wk_attn": "self_attention.wk", "wk_rel": "relational_attention.wq_rel"}
    own = {key: value.clone() for key, value in mixer.state_dict().items()}
    official = {f"dual_attn.{key}" if "attention" in key.split(".")[0] else key: value for key, value in own.items()}
    official |= {f"dual_attn.relational_attention.{k}.weight": own[f"{v}.weight"] + 1 for k, v in names.items()}
    native = mixer.to_native(official)
    mixer.load_state_dict(native)
    for name in names.values():
        torch.testing.assert_close(native[f"{name}.weight"], own[f"{name}.weight"] + 1)


@pytest.mark.parametrize("keywords", [{}, {"rel_activation": "relu"}, {"symbols": "relative"}], ids=str)
def test_holds_no_relations_of_all_pairs(keywords):
    mixer = DualAttention(8, num_heads_self=1, num_heads_rel=1, num_relations=2, **keywords)
    x = torch.randn(1, 64, 64, 8, requires_grad=True)
    with LargestTensor() as seen:
        mixer(x).sum().backward()
    assert seen.numbers <= 3 * (1 << 22) < 4096**2 * 2


@pytest.mark.parametrize("activation", ["identity", "tanh"])
def test_masked_tokens_are_as_if_they_were_not_there(activation):
    mixer = DualAttention(8, num_heads_self=1, num_heads_rel=1, rel_activation=activation, num_symbols=5)
    x, mask = torch.randn(2, 9, 8), torch.ones(2, 1, 9, 9, dtype=torch.bool)
    mask[..., 6:] = False
    out = mixer.forward_tokens(x, (3, 3), bias=mask)[:, :6]
    torch.testing.assert_close(out, mixer.forward_tokens(x[:, :6], (2, 3)))


def test_takes_positions_and_symbols():
    mixer = DualAttention(8, num_heads_self=1, num_heads_rel=1)
    x = torch.randn(2, 6, 8)
    expected = mixer.forward_tokens(x, (2, 3))
    bias = torch.randn(2, 6, 6)
    assert not torch.allclose(mixer.forward_tokens(x, (2, 3), bias=bias), expected)
    torch.testing.assert_close(mixer.forward_tokens(x, (2, 3), symbols=mixer.symbol_retriever(x)), expected)
    assert not torch.allclose(mixer.forward_tokens(x, (2, 3), rotate=lambda t: t.cumsum(2)), expected)
    torch.testing.assert_close(mixer.forward_tokens(x, (2, 3), rotate=torch.neg), expected)


def test_weights_are_rows_of_all_heads():
    mixer = DualAttention(12, num_heads_self=1, num_heads_rel=2)
    rows = mixer.weights(torch.randn(2, 3, 4, 12))
    assert rows.shape == (2, 3, 12, 12)
    torch.testing.assert_close(rows.sum(-1), torch.ones(2, 3, 12))


def test_one_retriever_may_serve_several_mixers():
    retriever = PositionalSymbols(8, max_length=4)
    one, other = (DualAttention(8, num_heads_self=0, num_heads_rel=2, symbols=retriever) for _ in range(2))
    assert one.symbol_retriever is other.symbol_retriever
    assert one(torch.randn(2, 3, 4, 8)).isfinite().all()  # 12 places from 4 symbols


def test_neighbours_in_the_row():
    assert RelationalSymbols(8).offsets == (-2, -1, 1, 2)
    assert RelationalSymbols(8, causal=True, neighbors=3).offsets == (-1, -2, -3)
    assert RelationalSymbols(8, include_self=True, neighbors=1).offsets == (-1, 0, 1)
    assert RelationalSymbols(8, include_self=True, causal=True, neighbors=1).offsets == (0, -1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads_self": 2, "num_heads_rel": 1}, "must divide dim.*num_heads_self=2, num_heads_rel=1"),
        ({"num_heads_self": 0, "num_heads_rel": 0}, "must divide dim"),
        ({"num_relations": 3}, "num_relations must divide the width of the relational heads, 4, got 3"),
        ({"num_relations": 0}, "num_relations must be at least 1, got 0"),
        ({"rel_activation": "elu"}, "rel_activation must be one of identity, .*, got 'elu'"),
        ({"symbols": "none"}, "symbols must be one of symbolic, positional, relative, relational, got 'none'"),
        ({"num_kv_heads_rel": 3}, "num_kv_heads_rel must divide the 2 heads, got 3"),
        ({"share_attn_params": True, "num_heads_self": 6}, "share_attn_params needs as many heads of each kind"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        DualAttention(8, **{"num_heads_self": 2, "num_heads_rel": 2, **arguments})
