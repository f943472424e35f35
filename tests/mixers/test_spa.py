"""Select and Pack Attention against the recorded equations, a dense mask, and what packing promises."""

from importlib import import_module

import pytest
import timm
import torch
from largest import LargestTensor

from visionattn.mixers import SelectPackAttention, replace_attention
from visionattn.ops.losses import collect_losses
from visionattn.reference.spa import naive_of
from visionattn.testing.contracts import perturbed
from visionattn.testing.fixtures import load, normal, relative_error


@pytest.mark.parametrize("name", ["images_3x49x48_h3_L16", "scoreup_2x64x49_h4_L25"])
def test_golden(name):
    golden = load(f"spa_{name}_eval")
    official, seed = golden.meta["constructor"], golden.meta["input_seed"]
    mixer = SelectPackAttention(
        official["dim"],
        num_heads=official["heads"],
        container=official["container"],
        threshold=official["threshold"],
        packing="batch",
    )
    mixer.load_state_dict(golden.state_dict)
    mixer.double().eval()
    x = golden.input.double().unsqueeze(1).requires_grad_()
    tokens, up = (x[..., :-1], 0.5 * x[:, 0, :, -1]) if official["score_up"] else (x, None)
    scores, kept, container = mixer.selection(tokens, up)
    assert torch.equal(kept, golden.arrays["out_1"].bool())
    assert torch.equal(container, golden.arrays["out_2"].long())
    assert relative_error(scores, golden.arrays["out_3"]) < 1e-6
    out = mixer(tokens, up).squeeze(1)
    assert relative_error(out, golden.arrays["out_0"]) < 1e-6
    (out * normal(seed + 1, out.shape)).sum().backward()
    along = (x.grad.squeeze(1) * normal(seed + 2, golden.input.shape)).sum().item()
    assert along == pytest.approx(golden.meta["control"]["directional_derivative"], rel=1e-5)


@pytest.mark.parametrize("packing", ["image", "batch"])
@pytest.mark.parametrize("container", [1, 5, 16, 1000])
@pytest.mark.parametrize("fixed", [False, True])
def test_agrees_with_a_dense_mask(packing, container, fixed, monkeypatch):
    """Also with the graph that does not depend on the data, which has slots for all tokens."""
    if fixed:
        monkeypatch.setattr(import_module("visionattn.ops.packed_attention"), "needs_formula", lambda: True)
    mixer = perturbed(SelectPackAttention(12, num_heads=3, container=container, packing=packing)).double()
    x, results = torch.randn(3, 5, 6, 12, dtype=torch.float64, requires_grad=True), []
    for one in (mixer, naive_of(mixer)):
        out = one(x)
        results.append((out, *torch.autograd.grad(out.square().sum(), x)))
    for ours, literal in zip(*results, strict=True):
        assert relative_error(ours, literal) < 1e-9


def test_batch_packing_depends_on_the_place_in_the_batch_and_image_packing_does_not():
    x, order = torch.randn(3, 5, 6, 12), [2, 0, 1]
    for packing, alike in (("image", True), ("batch", False)):
        mixer = SelectPackAttention(12, num_heads=3, container=7, packing=packing)
        assert torch.allclose(mixer(x)[order], mixer(x[order]), atol=1e-6) is alike


def test_nothing_kept_gives_nothing_and_all_kept_in_one_container_is_plain_attention():
    mixer = SelectPackAttention(12, num_heads=3, container=30)
    x = torch.randn(2, 5, 6, 12)
    with torch.no_grad():
        mixer.gate.weight.zero_()
        mixer.gate.bias.fill_(-50.0)
        assert not mixer(x).any() and not mixer.weights(x).any()
        mixer.gate.bias.fill_(50.0)
    torch.testing.assert_close(mixer.weights(x).sum(-1), torch.ones(2, 3, 30))
    assert not mixer.selection(x).container.any()


def test_weights_are_what_is_applied():
    mixer = perturbed(SelectPackAttention(12, num_heads=3, container=7))
    x = torch.randn(2, 5, 6, 12)
    scores, kept, _ = mixer.selection(x)
    gated = x.flatten(1, 2) * scores.sigmoid().unsqueeze(2)
    values = mixer.qkv(gated).chunk(3, -1)[2].unflatten(-1, (3, -1)).transpose(1, 2)
    out = mixer.proj((mixer.weights(x) @ values).transpose(1, 2).flatten(2)) * kept.unsqueeze(2)
    torch.testing.assert_close(mixer(x).flatten(1, 2), out)
    assert kept.any() and not kept.all()


def test_shifts_the_map_before_packing():
    mixer = perturbed(SelectPackAttention(12, num_heads=3, container=4))
    x = torch.randn(2, 5, 6, 12)
    still = mixer(x)
    mixer.shift = (1, 2)
    rolled = mixer(x.roll((1, 2), (1, 2)))
    torch.testing.assert_close(rolled, still.roll((1, 2), (1, 2)))
    assert not torch.allclose(mixer(x), still)


def test_scores_of_the_scale_before_are_pooled():
    mixer = SelectPackAttention(8, num_heads=2)
    x, up = torch.randn(2, 3, 4, 8), torch.randn(2, 6, 8)
    with torch.no_grad():
        mixer.gate.bias.fill_(-50.0)
    expected = up.unflatten(2, (4, 2)).unflatten(1, (3, 2)).amax((2, 4))
    torch.testing.assert_close(mixer.selection(x, up).scores, expected.flatten(1))
    with pytest.raises(ValueError, match=r"score_up must be a map .* \(2, 12\), got \(2, 5\)"):
        mixer(x, torch.zeros(2, 5))


def test_reports_its_loss():
    x, labels = torch.randn(2, 3, 4, 8), torch.zeros(2, 6, 8)
    mixer = SelectPackAttention(8, num_heads=2, ratio=0.25, loss_weight=2.0)
    scores = mixer.selection(x).scores
    with collect_losses() as losses:
        mixer(x)
        mixer(x, labels=labels)
        mixer.eval()(x)
    share, entropy = losses["selection"]
    torch.testing.assert_close(share, 2 * (scores.sigmoid().mean(1) - 0.25).square().mean())
    torch.testing.assert_close(entropy, -2 * (1 - scores.sigmoid()).log().mean())
    entropy.backward()
    assert mixer.gate.weight.grad.any()


def test_noise_decides_in_training_only():
    mixer = SelectPackAttention(8, num_heads=2, noise=1.0)
    x = torch.randn(1, 6, 6, 8)
    assert not torch.equal(mixer(x), mixer(x))
    mixer.eval()
    torch.testing.assert_close(mixer(x), mixer(x))


def test_extra_tokens_are_kept():
    mixer = SelectPackAttention(8, num_heads=2, container=5)
    with torch.no_grad():
        mixer.gate.bias.fill_(-50.0)
    out = mixer.forward_tokens(torch.randn(2, 14, 8), (3, 4), prefix=2)
    assert out[:, :2].abs().amin() > 0 and not out[:, 2:].any()


def test_holds_no_matrix_of_all_pairs():
    mixer, largest = SelectPackAttention(8, num_heads=1, container=49), {}
    for side in (14, 112):
        x = torch.randn(1, side, side, 8, requires_grad=True)
        with LargestTensor() as seen:
            mixer(x).sum().backward()
        largest[side] = seen.numbers
    assert largest[112] <= 80 * largest[14]


def test_a_gate_that_lets_all_through_leaves_a_network_as_it_is():
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", embed_dim=48, num_heads=3, depth=2, num_classes=5, img_size=64)
    x = torch.randn(2, 3, 64, 64)
    before = model.eval()(x)
    replace_attention(model, "spa", container=17)
    assert all(set(entry.new) == {"gate.weight", "gate.bias"} for entry in model.replaced)
    for module in model.modules():
        if isinstance(module, SelectPackAttention):
            torch.nn.init.zeros_(module.gate.weight)
            torch.nn.init.constant_(module.gate.bias, 50.0)
            module.shift = (0, 0)
    torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": 3}, "dim=8, num_heads=3"),
        ({"container": 0}, "container must be at least 1, got 0"),
        ({"threshold": 1.0}, r"threshold must lie between 0 and 1, got 1\.0"),
        ({"ratio": 0.0}, r"ratio must lie between 0 and 1, got 0\.0"),
        ({"packing": "all"}, "packing must be one of image, batch, got 'all'"),
        ({"noise": -1.0}, r"noise must be at least 0, got -1\.0"),
        ({"shift": -1}, "shift must be"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        SelectPackAttention(8, **arguments)
