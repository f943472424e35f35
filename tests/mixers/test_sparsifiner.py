"""Sparsifiner against the official code, softmax attention and what it promises."""

from functools import partial

import pytest
import timm
import torch

import visionattn
from visionattn.mixers import SoftmaxAttention, SparsifinerAttention, sparsifiner
from visionattn.ops.losses import collect_losses
from visionattn.ops.query_tiles import CACHED, in_tiles
from visionattn.testing.contracts import perturbed
from visionattn.testing.fixtures import check_module, load, relative_error


def build(**arguments):
    torch.manual_seed(0)
    return perturbed(SparsifinerAttention(24, **{"num_heads": 3, "grid": (3, 4), "reduce_n": 2, **arguments})).eval()


@pytest.mark.parametrize("name", ["1x50x48", "1x65x64_k50", "threshold_1x50x48"])
def test_equals_the_official_code(name):
    golden = load(f"sparsifiner_attn_{name}_eval")
    said = golden.meta["constructor"]
    side = int((said["num_tokens"] - 1) ** 0.5)
    mixer = SparsifinerAttention(
        said["dim"],
        num_heads=said["heads"],
        grid=side,
        reduce_n=said["reduce_n"],
        reduce_c=said["reduce_c"],
        keep_rate=said["keep"],
        share=said["share"],
        basis_threshold=said["basis_threshold"],
        coef_topk=said["coef_topk"],
        coef_threshold=said["coef_threshold"],
        score_threshold=None if said["score_topk"] else said["score_threshold"],
    )
    mixer.load_state_dict(golden.state_dict)
    place = ((side, side), 1)
    assert torch.equal(mixer.routes(golden.input, *place).float(), golden.arrays["out_1"])
    assert relative_error(mixer.coefficients(golden.input, *place), golden.arrays["out_2"]) < 1e-5

    class OnTokens(torch.nn.Module):
        def forward(self, x):
            return mixer.forward_tokens(x, *place)

    check_module(OnTokens(), golden, 1e-5)


@pytest.mark.parametrize("arguments", [{"keep_rate": 1.0}, {"score_threshold": -1.0}], ids=lambda a: "-".join(a))
def test_all_keys_are_softmax_attention(arguments):
    mixer, plain = build(**arguments), SoftmaxAttention(24, num_heads=3)
    plain.load_state_dict(mixer.state_dict(), strict=False)
    x, bias = torch.randn(2, 14, 24), torch.randn(3, 14, 14)
    given = {"rotate": lambda t: t.roll(1, 2), "bias": bias}
    torch.testing.assert_close(mixer.forward_tokens(x, (3, 4), 2, **given), plain.forward_tokens(x, (3, 4), 2, **given))
    torch.testing.assert_close(mixer(x[:, 2:].unflatten(1, (3, 4))), plain(x[:, 2:].unflatten(1, (3, 4))))


def test_takes_the_place_of_timms_attention():
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, num_classes=5).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        exact = visionattn.replace_attention(model, "sparsifiner", keep_rate=1.0)
        assert relative_error(exact(x), expected) < 1e-5
        assert all(block.attn.mixer.mask_predictor.grid == (4, 4) for block in exact.blocks)
        for block in exact.blocks:
            block.attn.mixer.keep_rate = 0.2
        assert relative_error(exact(x), expected) > 1e-4


@pytest.mark.parametrize("prefix", [0, 1, 3])
@pytest.mark.parametrize("grid", [(3, 4), (5, 3)], ids=str)
def test_weights_are_what_it_applies(grid, prefix):
    mixer = build(keep_rate=0.3)
    tokens = prefix + grid[0] * grid[1]
    x = torch.randn(2, tokens, 24)
    weights, seen = mixer.weights(x, grid, prefix), mixer.routes(x, grid, prefix)
    assert torch.equal(weights > 0, seen) and seen[:, :, :prefix].all() and seen[..., 1:prefix].all()
    known = tokens - max(prefix - 1, 0)
    assert (seen[:, :, prefix:].sum(-1) == -(-3 * known // 10) + tokens - known).all()
    out = mixer.proj((weights @ mixer._heads(x)[2]).transpose(1, 2).flatten(2))
    torch.testing.assert_close(mixer.forward_tokens(x, grid, prefix), out)
    for method in (mixer.weights, mixer.routes, mixer.coefficients):
        with pytest.raises(ValueError, match="need their grid here"):
            method(x)


@pytest.mark.parametrize("held", [0, 100, CACHED], ids=["one query", "some", "all"])
@pytest.mark.parametrize("arguments", [{"coef_topk": 1}, {"coef_topk": 2, "score_threshold": 0.05}], ids=str)
@pytest.mark.parametrize("prefix", [0, 1, 3])
def test_few_coefficients_are_added_up_one_by_one(prefix, arguments, held, monkeypatch):
    mixer = build(**arguments).double()
    x = torch.randn(2, prefix + 15, 24, dtype=torch.float64)
    expected = mixer.routes(x, (5, 3), prefix)
    monkeypatch.setattr(sparsifiner, "_SPARSE", 0)
    monkeypatch.setattr(sparsifiner, "in_tiles", partial(in_tiles, held=held))
    assert torch.equal(mixer.routes(x, (5, 3), prefix), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert mixer.float().routes(x.float(), (5, 3), prefix).shape == expected.shape
    assert mixer.bfloat16().routes(x.bfloat16(), (5, 3), prefix).shape == expected.shape


def test_queries_that_see_nothing_get_nothing():
    mixer = build(score_threshold=1e9)
    x = torch.randn(2, 3, 4, 24, requires_grad=True)
    out = mixer(x)
    torch.testing.assert_close(out, mixer.proj.bias.expand_as(out))
    assert torch.autograd.grad(out.sum(), x)[0].isfinite().all() and (mixer.weights(x) == 0).all()


def test_reconstruction_is_a_phase_of_training():
    mixer, plain = build(reconstruct=True), SoftmaxAttention(24, num_heads=3)
    plain.load_state_dict(mixer.state_dict(), strict=False)
    x = torch.randn(2, 14, 24)
    with collect_losses() as losses:
        torch.testing.assert_close(mixer.train().forward_tokens(x, (3, 4), 2), plain.forward_tokens(x, (3, 4), 2))
    (loss,) = losses["reconstruction"]
    mixer.reconstruct_weight *= 2
    with collect_losses() as doubled:
        mixer.forward_tokens(x, (3, 4), 2)
    torch.testing.assert_close(doubled["reconstruction"][0], 2 * loss)
    for phase in ("eval", "sparse"):
        mixer.train(phase == "sparse").reconstruct = phase == "eval"
        with collect_losses() as losses:
            assert not torch.allclose(mixer.forward_tokens(x, (3, 4), 2), plain.forward_tokens(x, (3, 4), 2))
        assert not losses


def test_reconstruction_teaches_the_predictor():
    """After some steps the keys it keeps hold more of the weight than those of random tables."""
    mixer = build(reconstruct=True, keep_rate=0.25, coef_topk=None, coef_threshold=0.0)
    with torch.no_grad():
        mixer.qkv.weight.mul_(8)  # peaked attention
    x = torch.randn(4, 3, 4, 24)
    full = (lambda q, k: (q @ k.mT * 8**-0.5).softmax(-1))(*mixer._heads(x.flatten(1, 2))[:2]).detach()

    def kept():
        return (full * mixer.routes(x)).sum(-1).mean().item()

    before, first = kept(), None
    optimizer = torch.optim.Adam(mixer.mask_predictor.parameters(), 0.02)
    for _ in range(150):
        with collect_losses() as losses:
            mixer.train()(x)
        loss = losses["reconstruction"][0]
        first = loss.item() if first is None else first
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.7 * first and kept() > before + 0.05


def test_the_predictor_takes_no_part_in_the_gradient():
    mixer = build().train()
    mixer(torch.randn(1, 3, 4, 24)).sum().backward()
    assert all((parameter.grad == 0).all() for parameter in mixer.mask_predictor.parameters())


def test_one_table_can_serve_for_two():
    mixer = build(share=True)
    assert mixer.mask_predictor.proj_n is mixer.mask_predictor.proj_back_n
    assert {"mask_predictor.proj_n", "mask_predictor.proj_back_n"} <= mixer.state_dict().keys()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keep_rate": 1.5}, r"keep_rate must be above 0 and at most 1, got 1\.5"),
        ({"keep_rate": 0.0}, r"keep_rate must be above 0 and at most 1, got 0\.0"),
        ({"reduce_n": 14}, "reduce_n must be at most the number of tokens, 13 for grid 3 x 4 and 1 extra ones, got 14"),
        ({"reduce_c": 9}, "reduce_c must be at most the width of a head, 8, got 9"),
        ({"coef_topk": 0}, "coef_topk must be at least 1, got 0"),
        ({"prefix_tokens": -1}, "prefix_tokens must be at least 0, got -1"),
        ({"grid": (0, 4)}, r"grid must be .* at least 1, got \(0, 4\)"),
        ({"reconstruct_weight": -1.0}, r"reconstruct_weight must be at least 0, got -1\.0"),
        ({"num_heads": 5}, "num_heads must divide dim, got dim=24, num_heads=5"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        SparsifinerAttention(24, **{"num_heads": 3, "grid": (3, 4), **arguments})
