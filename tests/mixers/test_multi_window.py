"""Multi-window attention against the official code, on maps, and with extra tokens."""

import pytest
import timm
import torch

from visionattn.mixers import MultiWindowAttention, SoftmaxAttention, replace_attention
from visionattn.reference.multi_window import naive_of
from visionattn.testing.contracts import perturbed
from visionattn.testing.fixtures import check_module, load, relative_error


class OnTokens(torch.nn.Module):
    def __init__(self, mixer):
        super().__init__()
        self.mixer = mixer

    def forward(self, x):
        return self.mixer.forward_tokens(x, (1, x.shape[1]))


@pytest.mark.parametrize("name", ["module_1x64x64", "module_2x50x48", "shift_1x60x48"])
def test_golden(name):
    golden = load(f"mwmha_{name}_eval")
    words = golden.meta["constructor"]
    mixer = MultiWindowAttention(
        words["dim"],
        num_heads=words["heads"],
        window_sizes=words["window_sizes"],
        shift=words["shift_windows"],
        qkv_bias=words["qkv_bias"],
        layout="sequence",
    )
    mixer.load_state_dict(golden.state_dict)
    check_module(OnTokens(mixer), golden, 1e-5)


VARIANTS = {
    "grid": {"window_sizes": (2, 3, 0, 2)},
    "one": {"window_sizes": 3, "shift": True},
    "no bias": {"window_sizes": (4, 0, 2, 4), "shift": True, "rel_pos": False},
    "sequence": {"window_sizes": (1, 4, 6, 0), "shift": True, "layout": "sequence"},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (4, 3), (5, 5)], ids=str)
def test_agrees_with_the_formula_and_its_weights(size, variant):
    torch.manual_seed(0)
    mixer = perturbed(MultiWindowAttention(16, num_heads=4, **VARIANTS[variant])).double()
    x = torch.randn(2, *size, 16, dtype=torch.float64, requires_grad=True)
    weight, results = torch.randn_like(x), []

    def dense(x):
        v = mixer.qkv(x.flatten(1, 2)).chunk(3, -1)[2].unflatten(-1, (4, -1)).transpose(1, 2)
        return mixer.proj((mixer.weights(x) @ v).transpose(1, 2).flatten(2)).view(x.shape)

    for one in (mixer, naive_of(mixer), dense):
        out = one(x)
        results.append((out, *torch.autograd.grad(out, x, weight)))
    for ours, theirs, of_weights in zip(*results, strict=True):
        assert relative_error(ours, theirs) < 1e-9 and relative_error(of_weights, theirs) < 1e-9


@pytest.mark.parametrize("variant", VARIANTS)
def test_extra_tokens_see_all_and_are_seen_by_all(variant):
    torch.manual_seed(0)
    mixer = perturbed(MultiWindowAttention(16, num_heads=4, **VARIANTS[variant]))
    tokens = torch.randn(2, 2 + 15, 16)
    out = mixer.forward_tokens(tokens, (3, 5), 2)
    plain = SoftmaxAttention(16, num_heads=4)
    plain.load_state_dict({k: v for k, v in mixer.state_dict().items() if not k.startswith("attn_heads")})
    torch.testing.assert_close(out[:, :2], plain.forward_tokens(tokens, (3, 5), 2)[:, :2])
    changed = tokens.clone()
    changed[:, 1] += 1
    assert (mixer.forward_tokens(changed, (3, 5), 2) - out).abs().amax(-1).min() > 0
    with torch.no_grad():
        mixer.qkv.weight[16:32] = 0  # keys say nothing: equal shares but for the biases
        mixer.qkv.bias[16:32] = 0
    tokens[:, :2] = 0
    without = mixer.forward_tokens(tokens[:, 2:], (3, 5))
    assert not torch.allclose(mixer.forward_tokens(tokens, (3, 5), 2)[:, 2:], without)


def test_one_patch_and_one_extra_token_by_hand():
    torch.manual_seed(0)
    mixer = MultiWindowAttention(8, num_heads=2, window_sizes=(2, 3), shift=True)
    plain = SoftmaxAttention(8, num_heads=2)
    plain.load_state_dict(mixer.state_dict(), strict=False)
    tokens = torch.randn(2, 2, 8)
    torch.testing.assert_close(mixer.forward_tokens(tokens, (1, 1), 1), plain.forward_tokens(tokens, (1, 1), 1))


@pytest.mark.parametrize("sizes", [0, 4, (0, 4, 5)], ids=str)
def test_in_the_place_of_a_networks_attention(sizes):
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", embed_dim=48, num_heads=3, depth=2, num_classes=5, img_size=64)
    x = torch.randn(2, 3, 64, 64)
    before = model.eval()(x)
    replace_attention(model, "multi_window", window_sizes=sizes)
    torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-5)
    model = timm.create_model("vit_tiny_patch16_224", embed_dim=48, num_heads=3, depth=1, num_classes=5, img_size=64)
    replace_attention(model, "multi_window")
    assert model.blocks[0].attn.mixer.window_sizes == (2, 2, 0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_heads": 3}, "dim=8, num_heads=3"),
        (
            {"window_sizes": (2, 3)},
            r"window_sizes must be an integer of at least 0, or one for each of 4 heads, got \(2",
        ),
        ({"window_sizes": -1}, "window_sizes must be an integer of at least 0"),
        ({"layout": "raster"}, "layout must be one of grid, sequence, got 'raster'"),
    ],
)
def test_bad_arguments(given, message):
    with pytest.raises(ValueError, match=message):
        MultiWindowAttention(8, **{"num_heads": 4, **given})
