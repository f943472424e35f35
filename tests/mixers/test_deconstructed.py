"""Deconstructed attention against fixtures, its formulas and what each form is said to lack."""

import pytest
import timm
import torch

from visionattn.mixers import DeconstructedAttention, replace_attention
from visionattn.reference.deconstructed import deconstructed_attention, naive_of
from visionattn.testing.contracts import perturbed
from visionattn.testing.fixtures import check_module, load, relative_error

KINDS = ("softmax", "taylor", "relu", "self_gate", "uniform", "mlp")


def from_fixture(golden):
    given = golden.meta["constructor"]
    module = DeconstructedAttention(
        given["dim"], num_heads=given["heads"], kind=given["kind"], hidden=given["hidden"]
    ).eval()
    module.load_state_dict(golden.state_dict)
    return module


@pytest.mark.parametrize("kind", ["softmax", "taylor", "self_gate", "uniform", "mlp"])
def test_agrees_with_the_fixtures(kind):
    golden = load(f"deconstruct_{kind}_2x4x5x32_eval")
    module = from_fixture(golden)
    assert sum(p.numel() for p in module.parameters()) == golden.meta["params"]
    check_module(module, golden, 1e-5)


def test_agrees_with_the_fixture_of_an_external_source():
    golden = load("deconstruct_external_2x4x5x32_eval")
    module = from_fixture(golden)
    out = module(golden.input, source=golden.arrays["in_source_map"])
    assert relative_error(out, golden.arrays["out_0"]) < 1e-5


@pytest.mark.parametrize("size", [(1, 1), (3, 4), (9, 8)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_the_formula(kind, size):
    """Also on maps so large that the Taylor polynomial is computed from features."""
    torch.manual_seed(0)
    module = perturbed(DeconstructedAttention(24, num_heads=3, kind=kind, qkv_bias=True)).double()
    x = torch.randn(2, *size, 24, dtype=torch.float64, requires_grad=True)
    weight, results = torch.randn_like(x), []
    for one in (module, naive_of(module)):
        out = one(x)
        wanted = (x, *(one.parameters() if one is module else one.module.parameters()))
        results.append((out, *torch.autograd.grad(out, wanted, weight)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("batch", [1, 2])
def test_an_external_source_gives_queries_and_keys(batch):
    torch.manual_seed(0)
    module = perturbed(DeconstructedAttention(12, num_heads=3, kind="external", qkv_bias=True)).double()
    x, source = torch.randn(2, 3, 4, 12).double(), torch.randn(batch, 3, 4, 12).double()
    torch.testing.assert_close(module(x, source), deconstructed_attention(module, x, source))
    values = module.qkv(x.flatten(1, 2)).chunk(3, -1)[2].unflatten(-1, (3, -1)).transpose(1, 2)
    dense = module.proj((module.weights(x, source) @ values).transpose(1, 2).flatten(2))
    torch.testing.assert_close(module(x, source), dense.view(x.shape))


@pytest.mark.parametrize("kind", ["softmax", "taylor", "relu", "self_gate", "uniform"])
def test_weights_are_what_is_applied(kind):
    torch.manual_seed(0)
    module = perturbed(DeconstructedAttention(12, num_heads=3, kind=kind)).double()
    x = torch.randn(2, 5, 4, 12).double()
    v = module.v(x) if kind == "uniform" else module.qkv(x)[..., 24:]
    rows = module.weights(x)
    assert rows.shape == (2, 3, 20, 20) and (rows >= 0).all()
    if kind != "relu":
        torch.testing.assert_close(rows.sum(-1), torch.ones_like(rows[..., 0]))
    mixed = rows @ v.flatten(1, 2).unflatten(-1, (3, -1)).transpose(1, 2)
    torch.testing.assert_close(module(x), module.proj(mixed.transpose(1, 2).flatten(2)).view(x.shape))


def test_what_each_form_lacks():
    torch.manual_seed(0)
    x = torch.randn(1, 3, 4, 12)
    for kind in ("uniform", "self_gate"):  # all positions get the same
        out = perturbed(DeconstructedAttention(12, num_heads=3, kind=kind))(x).flatten(1, 2)
        torch.testing.assert_close(out, out[:, :1].expand_as(out))
    mlp = DeconstructedAttention(12, num_heads=3, kind="mlp")
    torch.testing.assert_close(mlp(x)[:, 1, 2], mlp(x[:, 1:2, 2:3])[:, 0, 0])  # no position sees another
    count = {
        kind: sum(p.numel() for p in DeconstructedAttention(192, num_heads=3, kind=kind).parameters())
        for kind in ("mlp", "softmax")
    }
    assert abs(count["mlp"] / count["softmax"] - 1) < 0.01


def test_dropout_of_weights_reaches_the_linear_form():
    module = DeconstructedAttention(8, num_heads=2, kind="taylor", attn_drop=0.5)
    x = torch.randn(1, 6, 6, 8)
    assert not torch.equal(module(x), module(x))
    module.eval()
    assert torch.equal(module(x), module(x))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "eva02_tiny_patch14_224", "beit_base_patch16_224"])
def test_plain_attention_in_its_place_leaves_networks_as_they_are(name):
    torch.manual_seed(0)
    side = 56 if "patch14" in name else 64
    model = timm.create_model(name, embed_dim=48, num_heads=3, depth=2, num_classes=5, img_size=side).eval()
    x = torch.randn(2, 3, side, side)
    before = model(x)
    replace_attention(model, "deconstructed", kind="softmax")
    torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-5)


def test_takes_the_weights_of_some_blocks_in_another_form():
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", embed_dim=48, num_heads=3, depth=4, num_classes=5, img_size=64)
    x = torch.randn(2, 3, 64, 64)
    before = model.eval()(x)
    replace_attention(model, "deconstructed", blocks=[0, 2], kind="self_gate")
    assert [entry.new for entry in model.replaced] == [(), ()]
    assert not torch.allclose(model(x), before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 8, "num_heads": 3}, "dim=8, num_heads=3"),
        ({"dim": 8, "kind": "cosine"}, "kind must be one of softmax, taylor, .*, got 'cosine'"),
        ({"dim": 8, "kind": "mlp", "hidden": 0}, "hidden must be at least 1, got 0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        DeconstructedAttention(**arguments)


def test_bad_input():
    x = torch.randn(2, 3, 4, 8)
    external = DeconstructedAttention(8, num_heads=2, kind="external")
    with pytest.raises(ValueError, match="source must be given with kind='external' only; kind is 'external'"):
        external(x)
    with pytest.raises(ValueError, match=r"source must have the shape of x, \(2, 12, 8\) .* got \(1, 9, 8\)"):
        external(x, torch.randn(1, 3, 3, 8))
    with pytest.raises(ValueError, match="kind is 'uniform'"):
        DeconstructedAttention(8, num_heads=2, kind="uniform")(x, x)
    with pytest.raises(ValueError, match="'self_gate' compares no pairs"):
        DeconstructedAttention(8, num_heads=2, kind="self_gate").forward_tokens(x.flatten(1, 2), (3, 4), bias=x)
    with pytest.raises(ValueError, match="mixes no tokens"):
        DeconstructedAttention(8, num_heads=2, kind="mlp").weights(x)
