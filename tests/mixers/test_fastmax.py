"""Fastmax against the official code's recorded results, its dense matrix and its promise of linear cost."""

import pytest
import timm
import torch
from largest import LargestTensor

from visionattn.mixers import FastmaxAttention, Tokens, replace_attention
from visionattn.ops import polynomial_attention
from visionattn.testing.contracts import perturbed
from visionattn.testing.fixtures import check_module, load, relative_error


@pytest.mark.parametrize("name", ["p1_norm_1x99x64_h4", "p2_norm_2x70x48_h6", "p2_raw_1x64x48_h3"])
def test_golden(name):
    golden = load(f"fastmax_{name}_eval")
    official = golden.meta["constructor"]
    mixer = FastmaxAttention(
        official["dim"],
        num_heads=official["heads"],
        order=official["p"],
        normalize=official["normalize"],
        lim=official["lim"],
        coefficients=tuple(official[name] for name in ("a0", "a1", "a2")),
        causal=official["causal"],
    )
    mixer.load_state_dict(golden.state_dict)
    check_module(Tokens(mixer, (1, golden.input.shape[1])), golden, 1e-5)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("coefficients", [(1.0, 1.0, 0.5), (1.0, 0.7), (2.0, -0.3, 1.0)], ids=str)
@pytest.mark.parametrize("width", [1, 2, 4, 5])
def test_features_give_what_all_pairs_give(width, coefficients, causal):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.rand(2, 3, 1500, width, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(3)
    )
    results = []
    for quadratic in (True, False):
        out = polynomial_attention(q, k, v, coefficients, causal=causal, quadratic=quadratic)
        results.append((out, *torch.autograd.grad(out.square().sum(), (q, k, v))))
    for all_pairs, features in zip(*results, strict=True):
        assert relative_error(features, all_pairs) < 1e-9


@pytest.mark.parametrize("keywords", [{}, {"causal": True}, {"order": 1}, {"normalize": False}], ids=str)
@pytest.mark.parametrize("size", [(1, 1), (9, 8)], ids=str)
def test_agrees_with_its_dense_matrix(size, keywords):
    mixer = perturbed(FastmaxAttention(12, num_heads=3, **keywords)).double()
    x = torch.randn(2, *size, 12, dtype=torch.float64)
    rows = mixer.weights(x)
    assert (rows >= 0).all()
    torch.testing.assert_close(rows.sum(-1), torch.ones_like(rows[..., 0]))
    values = mixer.qkv(x.flatten(1, 2)).chunk(3, dim=-1)[2].unflatten(-1, (3, -1)).transpose(1, 2)
    assert relative_error(mixer(x), mixer.proj((rows @ values).transpose(1, 2).flatten(2)).view(x.shape)) < 1e-9


@pytest.mark.parametrize("keywords", [{}, {"causal": True}, {"order": 1}], ids=str)
def test_holds_no_matrix_of_all_pairs(keywords):
    mixer = FastmaxAttention(16, num_heads=2, **keywords)
    largest = {}
    for side in (14, 112):
        x = torch.randn(1, side, side, 16, requires_grad=True)
        with LargestTensor() as seen:
            mixer(x).sum().backward()
        largest[side] = seen.numbers
    assert largest[112] <= 64 * max(largest[14], 14 * 14 * 48) and largest[112] < (112 * 112) ** 2 / 100


def test_positions_are_rotated_before_the_longest_is_found():
    mixer = FastmaxAttention(8, num_heads=2)
    x = torch.randn(1, 6, 8)
    doubled = mixer.forward_tokens(x, (2, 3), rotate=lambda t: 2 * t)
    torch.testing.assert_close(doubled, mixer.forward_tokens(x, (2, 3)))
    assert not torch.allclose(mixer.forward_tokens(x, (2, 3), rotate=lambda t: t.flip(-1).cumsum(2)), doubled)


def test_drops_features_in_training_only():
    mixer = FastmaxAttention(8, num_heads=2, attn_drop=0.5)
    x = torch.randn(1, 3, 4, 8, requires_grad=True)
    assert not torch.equal(mixer(x), mixer(x))
    mixer(x).sum().backward()
    mixer.eval()
    torch.testing.assert_close(mixer(x), mixer(x))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_rope_224"])
def test_takes_over_the_weights_of_a_network(name):
    model = timm.create_model(name, embed_dim=48, num_heads=3, depth=2, num_classes=5, img_size=64).eval()
    kept = {key: value.clone() for key, value in model.state_dict().items()}
    replace_attention(model, "fastmax", order=1)
    assert all(entry.new == () for entry in model.replaced)
    assert model.state_dict().keys() == kept.keys()
    assert all(torch.equal(value, kept[key]) for key, value in model.state_dict().items())
    assert model(torch.randn(2, 3, 64, 64)).isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 8, "num_heads": 3}, "dim=8, num_heads=3"),
        ({"dim": 8, "order": 3}, "order must be one of 1, 2, got 3"),
        ({"dim": 8, "lim": 0.0}, r"lim must be above 0, got 0\.0"),
        ({"dim": 8, "coefficients": (1.0, 1.0)}, "coefficients must be three numbers"),
        ({"dim": 8, "coefficients": (1.0, 1.0, 0.1)}, "must keep the weights from being negative"),
        ({"dim": 8, "order": 1, "lim": 1.5}, "must keep the weights from being negative.*lim=1.5"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        FastmaxAttention(**arguments)
