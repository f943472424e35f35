"""Scatterbrain against the official code, the dense matrix that it stands for and softmax attention."""

import pytest
import timm
import torch

import visionattn
from visionattn.mixers import ScatterbrainAttention, SoftmaxAttention
from visionattn.ops.exact_pairs import random_projection
from visionattn.ops.scatterbrain_attention import features
from visionattn.testing.fixtures import check_module, load, relative_error

NAMES = ("local_1x70x48_L9_m24", "local_2x49x64_L12_m32", "smyrf_1x72x48_c12x2_m24", "smyrf_pad_1x70x64_c16x1_m32")
SUPPORTS = {
    "windows": {"window": (2, 3)},
    "band": {"local_context": 5},
    "even": {"support": "band", "local_context": 6, "cosh": False},
    "clusters": {"cluster_size": 6, "n_hashes": 3, "softmax_eps": 0.01},
}


def build(name, **arguments):
    torch.manual_seed(0)
    return ScatterbrainAttention(24, **{"num_heads": 3, "support": name, **SUPPORTS[name], **arguments})


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_official_code(name):
    golden = load(f"scatterbrain_{name}_eval")
    said = golden.meta["constructor"]
    hashed = "n_hashes" in said
    settings = (
        {"support": "clusters", "cluster_size": said["q_cluster_size"], "n_hashes": said["n_hashes"]}
        if hashed
        else {"support": "band", "local_context": said["local_context"]}
    )
    mixer = ScatterbrainAttention(said["dim"], num_heads=said["heads"], nb_features=said["features"], **settings)
    state = {**golden.state_dict, "feature_map.projection_matrix": golden.arrays["aux_projection"]}
    if hashed:
        state["lsh_alpha"] = golden.arrays["aux_lsh_alpha"]
    mixer.load_state_dict(state)
    x = golden.input
    grid = (1, x.size(1))
    if hashed:
        clusters = mixer.pairs(*mixer._heads(x)[:2], grid)
        for ours, theirs in ((clusters.queries, "aux_q_order"), (clusters.keys, "aux_k_order")):
            theirs = golden.arrays[theirs].view(ours.shape)
            ours, theirs = (o.unflatten(-1, (-1, clusters.size)).sort(-1).values for o in (ours, theirs))
            assert torch.equal(ours, theirs)

    class OnTokens(torch.nn.Module):
        def forward(self, x):
            return mixer.forward_tokens(x, grid)

    check_module(OnTokens(), golden, 1e-5)


@pytest.mark.parametrize("prefix", [0, 2])
@pytest.mark.parametrize("name", SUPPORTS)
def test_weights_are_what_it_applies(name, prefix):
    mixer = build(name).double()
    x = torch.randn(2, prefix + 20, 24, dtype=torch.float64, requires_grad=True)
    weights = mixer.weights(x, (4, 5), prefix)
    expected = mixer.proj((weights @ mixer._heads(x)[2]).transpose(1, 2).flatten(2))
    out = mixer.forward_tokens(x, (4, 5), prefix)
    assert relative_error(out, expected) < 1e-9
    weight = torch.randn_like(out)
    ours, theirs = (torch.autograd.grad(y, x, weight)[0] for y in (out, expected))
    assert relative_error(ours, theirs) < 1e-9
    exact = (mixer._heads(x)[0] @ mixer._heads(x)[1].mT * 8**-0.5).exp()
    ratio = weights / exact
    assert (ratio[:, :, :prefix].diff(dim=-1).abs() < 1e-9 * ratio[:, :, :prefix, 1:]).all()
    if prefix == 0:
        with pytest.raises(ValueError, match="need their grid here"):
            mixer.weights(x)


@pytest.mark.parametrize(
    "arguments",
    [
        {"window": (5, 7)},
        {"support": "band", "local_context": 70},
        {"support": "clusters", "cluster_size": 35},
    ],
    ids=lambda a: a.get("support", "windows"),
)
def test_a_support_of_everything_is_softmax_attention(arguments):
    torch.manual_seed(0)
    mixer, plain = ScatterbrainAttention(24, num_heads=3, **arguments), SoftmaxAttention(24, num_heads=3)
    plain.load_state_dict(mixer.state_dict(), strict=False)
    x = torch.randn(2, 5, 7, 24)
    torch.testing.assert_close(mixer(x), plain(x))
    tokens, rotate = torch.randn(2, 37, 24), lambda t: t.roll(1, 2)
    ours, theirs = (m.forward_tokens(tokens, (5, 7), 2, rotate=rotate) for m in (mixer, plain))
    torch.testing.assert_close(ours, theirs)


def test_takes_the_place_of_timms_attention():
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, num_classes=5).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        exact = visionattn.replace_attention(model, "scatterbrain", window=(4, 4))
        assert relative_error(exact(x), expected) < 1e-5
        for block in exact.blocks:
            block.attn.mixer.window = (2, 2)
        assert relative_error(exact(x), expected) > 1e-4


def test_more_features_are_closer_to_softmax_attention():
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 40, 16).double() * 0.4
    exact, errors = (q @ k.mT / 4).exp(), []
    for count in (16, 256, 4096):
        projection = random_projection(count, 16, generator=torch.Generator().manual_seed(0)).double()
        u, w, level = features(q, k, projection, True, 0.0, 0.25)
        errors.append(((u @ w.mT * level.exp() - exact).norm() / exact.norm()).item())
    assert errors[0] > 2 * errors[1] > 4 * errors[2] and errors[2] < 0.1


def test_directions_are_orthogonal():
    drawn = random_projection(32, 8, ortho_scaling=True)
    torch.testing.assert_close(drawn[:8] @ drawn[:8].mT, 8 * torch.eye(8), rtol=1e-4, atol=1e-4)
    assert random_projection(10, 8, cosh=False).shape == (10, 8)


def test_draws_repeat():
    x = torch.randn(1, 4, 5, 24)
    mixers = [build("clusters", generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    one, other, third = (mixer(x) for mixer in mixers)
    assert torch.equal(one, other) and torch.equal(mixers[0](x), one) and not torch.allclose(one, third)
    mixers[2].init_weights(torch.Generator().manual_seed(1))
    assert torch.equal(mixers[2](x), one)


@pytest.mark.parametrize("name", SUPPORTS)
def test_dropout_leaves_the_sum_of_weights(name):
    """The mean over many draws is what evaluation gives."""
    mixer = build(name, attn_drop=0.3).train()
    x = torch.randn(1, 4, 5, 24)
    with torch.no_grad():
        mean = torch.stack([mixer(x) for _ in range(600)]).mean(0)
        assert not torch.equal(mixer(x), mixer(x))
        assert relative_error(mean, mixer.eval()(x)) < 0.1


def test_large_queries_and_keys_stay_finite():
    for name in SUPPORTS:
        mixer = build(name, softmax_eps=0.0)
        x = (torch.randn(1, 4, 5, 24) * 100).requires_grad_()
        out = mixer(x)
        assert out.isfinite().all() and torch.autograd.grad(out.sum(), x)[0].isfinite().all(), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"support": "stars"}, "support must be one of windows, band, clusters, got 'stars'"),
        ({"nb_features": 5}, "nb_features must be at least 1, and even with cosh, got nb_features=5"),
        ({"nb_features": 0}, "nb_features must be at least 1"),
        ({"window": (0, 3)}, r"window must be .* at least 1, got \(0, 3\)"),
        ({"local_context": 0}, "local_context must be at least 1, got 0"),
        ({"cluster_size": 0}, "cluster_size must be at least 1, got 0"),
        ({"n_hashes": 0}, "n_hashes must be at least 1, got 0"),
        ({"softmax_eps": -1.0}, r"softmax_eps must be at least 0, got -1\.0"),
        ({"num_heads": 5}, "num_heads must divide dim, got dim=24, num_heads=5"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ScatterbrainAttention(24, **{"num_heads": 3, **arguments})
