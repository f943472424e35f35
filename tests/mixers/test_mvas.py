"""Attention between views against the official code's recorded runs, its literal form, and plain attention."""

import pytest
import torch

from visionattn.mixers import MultiViewWindowAttention, resolve_mixer
from visionattn.ops import attention
from visionattn.reference.mvas import naive_of
from visionattn.testing import contracts
from visionattn.testing.contracts import perturbed
from visionattn.testing.fixtures import check_module, load, relative_error


@pytest.mark.parametrize("name", ["1x3x12x12x32_w3_k4", "pad_1x3x10x7x48_w3_k5"])
def test_golden(name):
    golden = load(f"mvas_{name}_eval")
    official = golden.meta["constructor"]
    mixer = MultiViewWindowAttention(
        official["dim"], num_heads=official["heads"], n_win=official["n_win"], topk=official["topk"]
    )
    check_module(mixer, golden, 1e-5)
    regions = official["n_win"] ** 2
    routing = mixer.routing(golden.input).unflatten(1, (official["views"], regions))
    for view in range(official["views"]):  # the official numbers leave the view itself out
        own = routing[:, view]
        own = own - regions * (own >= regions * view)
        assert torch.equal(own.sort(-1).values.float(), golden.arrays["out_1"][:, view].sort(-1).values)


@pytest.mark.parametrize("keywords", [{}, {"proj": True}], ids=str)
@pytest.mark.parametrize("size", [(2, 3, 4, 4), (1, 2, 5, 9), (2, 1, 4, 6), (2, 5, 7)], ids=str)
def test_agrees_with_its_literal_form(size, keywords):
    mixer = perturbed(MultiViewWindowAttention(12, num_heads=3, n_win=2, topk=3, **keywords)).double()
    x, results = torch.randn(*size, 12, dtype=torch.float64, requires_grad=True), []
    for one in (mixer, naive_of(mixer)):
        out = one(x)
        results.append((out, *torch.autograd.grad(out.square().sum(), x)))
    for ours, literal in zip(*results, strict=True):
        assert relative_error(ours, literal) < 1e-9


def test_all_regions_are_global_attention_to_the_other_views():
    mixer = MultiViewWindowAttention(8, num_heads=2, n_win=2, topk=8)
    x = torch.randn(2, 3, 4, 6, 8)
    tokens = x.flatten(2, 3).unflatten(3, (2, 4)).transpose(2, 3)
    for view in range(3):
        others = torch.cat([tokens[:, other] for other in range(3) if other != view], 2)
        expected = attention(tokens[:, view], others, others, scale=8**-0.5).unflatten(1, (4, 6))
        torch.testing.assert_close(mixer(x)[:, view], expected)


def test_a_view_does_not_see_itself():
    mixer = MultiViewWindowAttention(8, num_heads=2, n_win=2, topk=2)
    table = mixer.routing(torch.randn(2, 3, 4, 4, 8)).unflatten(1, (3, 4))
    assert all((table[:, view] // 4 != view).all() for view in range(3))


@pytest.mark.parametrize("given", [{}, {"proj": True}, {"proj": True, "qkv_bias": False}], ids=str)
def test_keys_may_be_others_than_what_asks(given):
    mixer = MultiViewWindowAttention(8, num_heads=2, n_win=2, topk=3, **given)
    x, position = torch.randn(2, 2, 4, 4, 8), torch.randn(4, 4, 8)
    torch.testing.assert_close(mixer(x, x), mixer(x))
    assert not torch.allclose(mixer(x + position, x), mixer(x))
    assert not torch.allclose(mixer(x + position, x), mixer(x + position))


@pytest.mark.parametrize("proj", [False, True])
@pytest.mark.parametrize("check", [*contracts.CHECKS["mixer"], *contracts.GRAPH_CHECKS["mixer"]])
def test_keeps_what_mixers_promise_on_a_single_view(check, proj):
    if check is contracts.converts_to_onnx:
        pytest.importorskip("onnxruntime", reason="ONNX parity needs the [test] extra")
    keywords = {"num_heads": 3, "n_win": 4, "topk": 3, "proj": proj}
    check(contracts.Subject("mixer", MultiViewWindowAttention, keywords, discrete=True, formula=naive_of))


def test_compiles_and_exports_with_several_views():
    mixer, x = MultiViewWindowAttention(8, num_heads=2, n_win=2, topk=3), torch.randn(2, 3, 5, 4, 8)
    expected = mixer(x)
    torch.testing.assert_close(torch.compile(mixer, fullgraph=True, backend="aot_eager")(x), expected)
    program = torch.export.export(mixer, (x,), dynamic_shapes={"x": {0: torch.export.Dim.DYNAMIC}})
    torch.testing.assert_close(program.module()(x.repeat(2, 1, 1, 1, 1))[:2], expected)


def test_says_that_it_needs_views():
    with pytest.raises(ValueError, match=r"'mvas' needs more than a map \(views\)"):
        resolve_mixer("mvas")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": 3}, "dim=8, num_heads=3"),
        ({"n_win": 0}, "n_win must be at least 1, got 0"),
        ({"topk": 0}, "topk must be at least 1, got 0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        MultiViewWindowAttention(8, **arguments)


def test_bad_input():
    mixer = MultiViewWindowAttention(8, num_heads=2, n_win=2, topk=5)
    with pytest.raises(ValueError, match="topk must be at most the regions to see, 4 with n_win=2 and 2 views, got 5"):
        mixer(torch.randn(1, 2, 4, 4, 8))
    with pytest.raises(ValueError, match=r"x must be views .*, got \(4, 4, 8\)"):
        mixer(torch.randn(4, 4, 8))
    with pytest.raises(ValueError, match=r"keys must have the shape of x, \(1, 3, 4, 4, 8\), got \(1, 2, 4, 4, 8\)"):
        mixer(torch.randn(1, 3, 4, 4, 8), torch.randn(1, 2, 4, 4, 8))
