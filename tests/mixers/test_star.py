"""Star attention against an independent implementation, and how far its windows see."""

import pytest
import timm
import torch

from visionattn.mixers import StarAttention, replace_attention
from visionattn.profiling.operator_counter import saved_bytes
from visionattn.reference.star import naive_of
from visionattn.testing.contracts import perturbed
from visionattn.testing.fixtures import check_module, load, relative_error


@pytest.mark.parametrize(("name", "anchor"), [("pool_2x5x7x32_w3", "pool"), ("window_1x6x6x32_w3", "window")])
def test_golden(name, anchor):
    golden = load(f"star_{name}_eval")
    mixer = StarAttention(32, num_heads=4, window=3, anchor=anchor)
    mixer.load_state_dict(golden.state_dict)
    check_module(mixer, golden, 1e-5)


@pytest.mark.parametrize("given", [{}, {"anchor_size": (3, 1)}, {"anchor": "window"}], ids=["pool", "rows", "window"])
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (4, 6), (5, 5)], ids=str)
def test_agrees_with_the_formula_and_its_weights(size, given):
    torch.manual_seed(0)
    mixer = perturbed(StarAttention(12, num_heads=3, window=(2, 3), qkv_bias=True, **given)).double()
    x = torch.randn(2, *size, 12, dtype=torch.float64, requires_grad=True)
    weight, results = torch.randn_like(x), []

    def dense(x):
        v = mixer.qkv(x.flatten(1, 2)).chunk(3, -1)[2].unflatten(-1, (3, -1)).transpose(1, 2)
        return mixer.proj((mixer.weights(x) @ v).transpose(1, 2).flatten(2)).view(x.shape)

    for one in (mixer, naive_of(mixer), dense):
        out = one(x)
        results.append((out, *torch.autograd.grad(out, x, weight)))
    for ours, theirs, of_weights in zip(*results, strict=True):
        assert relative_error(ours, theirs) < 1e-9 and relative_error(of_weights, theirs) < 1e-9
    torch.testing.assert_close(mixer.weights(x).sum(-1), torch.ones(2, 3, size[0] * size[1]).double())


def test_how_far_windows_see():
    torch.manual_seed(0)
    x = torch.randn(1, 6, 6, 12)
    assert (StarAttention(12, num_heads=3, window=2).weights(x) > 0).all()  # through the pooled map
    seen = (StarAttention(12, num_heads=3, window=2, anchor="window").weights(x)[0, 0] > 0).view(6, 6, 6, 6)
    middle = torch.zeros(6, 6, dtype=torch.bool)
    middle[2:4, 2:4] = True
    assert torch.equal(seen[3, 3], middle)
    own = torch.zeros(6, 6, dtype=torch.bool)
    own[:2, 4:] = True
    assert torch.equal(seen[0, 5], middle | own)


def test_memory_is_linear_in_the_positions():
    mixer = StarAttention(32, num_heads=2, window=4)
    small, large = (saved_bytes(mixer, torch.randn(1, side, side, 32)) for side in (16, 32))
    assert large < 4.1 * small


def test_in_the_place_of_a_networks_attention():
    torch.manual_seed(0)
    arguments = {"embed_dim": 48, "num_heads": 3, "depth": 2, "num_classes": 5, "img_size": 64}
    model = timm.create_model("vit_tiny_patch16_224", class_token=False, global_pool="avg", **arguments).eval()
    x = torch.randn(2, 3, 64, 64)
    before = model(x)
    replace_attention(model, "star", window=4, anchor="window")
    torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-5)
    assert model.replaced[0].new == ()
    model = timm.create_model("vit_tiny_patch16_224", **arguments).eval()
    attention = model.blocks[0].attn
    tokens = torch.randn(2, 17, 48)
    expected = attention(tokens)[:, :1]  # the second phase: a class token sees everything
    replace_attention(model, "star", window=2)
    torch.testing.assert_close(model.blocks[0].attn(tokens)[:, :1], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_heads": 3}, "dim=8, num_heads=3"),
        ({"window": 0}, r"window must be one integer or two \(height, width\), at least 1, got 0"),
        ({"anchor": "first"}, "anchor must be one of pool, window, got 'first'"),
        ({"anchor_size": (2, 0)}, r"anchor_size must be one integer or two .*got \(2, 0\)"),
    ],
)
def test_bad_arguments(given, message):
    with pytest.raises(ValueError, match=message):
        StarAttention(8, **{"num_heads": 4, **given})
