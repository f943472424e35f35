"""Landmark attention: the official softmax in groups, and the form for images."""

import pytest
import timm
import torch

from visionattn.mixers import LandmarkAttention, SoftmaxAttention, landmark_softmax, replace_attention
from visionattn.reference.landmark import naive_of
from visionattn.testing.contracts import perturbed
from visionattn.testing.fixtures import check_module, load, relative_error


class GroupedSoftmax(torch.nn.Module):
    def forward(self, x):
        return landmark_softmax(x, 4, 4)


def test_golden_softmax_in_groups():
    golden = load("landmark_softmax_2x5x23_eval")
    check_module(GroupedSoftmax(), golden, 1e-5)
    rows = landmark_softmax(golden.input, 4, 4)
    torch.testing.assert_close(rows.sum(-1), torch.ones(1, 2, 5))
    assert not rows[..., 3:16:4].any()
    torch.testing.assert_close(landmark_softmax(golden.input, 0, 4), golden.input.softmax(-1))


@pytest.mark.parametrize(("name", "topk"), [("1x5x7x32_w3_top2", 2), ("2x6x6x32_w3", None)])
def test_golden(name, topk):
    golden = load(f"landmark_{name}_eval")
    mixer = LandmarkAttention(32, num_heads=4, window=3, topk=topk)
    mixer.load_state_dict(golden.state_dict)
    check_module(mixer, golden, 1e-5)


@pytest.mark.parametrize("topk", [None, 1, 2, 9])
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (4, 3), (5, 5)], ids=str)
def test_agrees_with_the_formula_and_its_weights(size, topk):
    torch.manual_seed(0)
    mixer = perturbed(LandmarkAttention(12, num_heads=3, window=(2, 3), topk=topk, qkv_bias=True)).double()
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


def test_gates_of_the_windows():
    torch.manual_seed(0)
    mixer = perturbed(LandmarkAttention(12, num_heads=3, window=2, topk=2))
    x = torch.randn(2, 5, 4, 12)
    gates = mixer.gates(x)
    assert gates.shape == (2, 3, 5, 4, 6)  # three rows of two windows
    torch.testing.assert_close(gates.sum(-1), torch.ones(2, 3, 5, 4))
    assert ((gates > 0).sum(-1) == 3).all() and (gates[:, :, 4, 2:, 5] > 0).all()  # two others and the own one
    taken = mixer.weights(x).unflatten(-1, (5, 4))[..., 2:4, :2].sum((-1, -2))
    torch.testing.assert_close(taken.unflatten(-1, (5, 4)), gates[..., 2])


def test_one_window_is_plain_attention_and_extra_tokens_see_all():
    torch.manual_seed(0)
    mixer, plain = LandmarkAttention(12, num_heads=3, window=4, qkv_bias=True), SoftmaxAttention(12, num_heads=3)
    plain.load_state_dict(mixer.state_dict(), strict=False)
    tokens = torch.randn(2, 2 + 12, 12)
    for given in ({}, {"rotate": torch.sin}):
        expected = plain.forward_tokens(tokens, (3, 4), 2, **given)
        torch.testing.assert_close(mixer.forward_tokens(tokens, (3, 4), 2, **given), expected)
    tokens = torch.randn(2, 2 + 30, 12)
    expected = plain.forward_tokens(tokens, (5, 6), 2)[:, :2]
    out = mixer.forward_tokens(tokens, (5, 6), 2)
    torch.testing.assert_close(out[:, :2], expected)
    changed = tokens.clone()
    changed[:, 0] += 1
    assert (mixer.forward_tokens(changed, (5, 6), 2) - out).abs().amax(-1).min() > 0
    tokens[:, :2] = 0  # no score, no value: they only take their share of the sum
    out, without = mixer.forward_tokens(tokens, (5, 6), 2), mixer.forward_tokens(tokens[:, 2:], (5, 6))
    assert not torch.allclose(out[:, 2:], without)


def test_in_the_place_of_a_networks_attention():
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", embed_dim=48, num_heads=3, depth=2, num_classes=5, img_size=64)
    x = torch.randn(2, 3, 64, 64)
    before = model.eval()(x)
    replace_attention(model, "landmark", window=4)
    torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-5)
    assert model.replaced[0].new == ("landmark",)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_heads": 3}, "dim=8, num_heads=3"),
        ({"window": 0}, r"window must be one integer or two \(height, width\), at least 1, got 0"),
        ({"topk": 0}, "topk must be at least 1, got 0"),
    ],
)
def test_bad_arguments(given, message):
    with pytest.raises(ValueError, match=message):
        LandmarkAttention(8, **{"num_heads": 4, **given})


@pytest.mark.parametrize(("blocks", "size"), [(-1, 4), (2, 1), (3, 4)])
def test_blocks_that_leave_nothing(blocks, size):
    with pytest.raises(ValueError, match=f"less than the 12 keys, got blocks={blocks}, block_size={size}"):
        landmark_softmax(torch.zeros(2, 12), blocks, size)
