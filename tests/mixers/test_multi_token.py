"""Multi-Token Attention against the official code, on grids, on tokens, and as plain attention at its start."""

import pytest
import timm
import torch

from visionattn.mixers import MultiTokenAttention, SoftmaxAttention, replace_attention
from visionattn.reference.multi_token import naive_of
from visionattn.testing.contracts import perturbed
from visionattn.testing.fixtures import check_module, load, relative_error

FULL = {"kernel_after": 3, "head_group": 2, "head_mix": True, "gate": True}
IN_ROWS = {"layout": "raster", "kernel": (6, 11), "kernel_after": (6, 11)}
FIXTURES = {
    "grid_1x5x7x32_k3": {},
    "grid_2x4x6x32_full": FULL,
    "open_pre_1x17x32": {"layout": "raster", "kernel": (3, 5)},
    "open_full_2x21x32": {**FULL, **IN_ROWS},
    "causal_full_2x21x32": {**FULL, **IN_ROWS, "causal": True},
}


class OnTokens(torch.nn.Module):
    def __init__(self, mixer):
        super().__init__()
        self.mixer = mixer

    def forward(self, x):
        return self.mixer.forward_tokens(x, (1, x.shape[1]))


@pytest.mark.parametrize("name", FIXTURES)
def test_golden(name):
    golden = load(f"mta_{name}_eval")
    mixer = MultiTokenAttention(32, num_heads=4, **FIXTURES[name])
    mixer.load_state_dict(golden.state_dict)
    check_module(mixer if name.startswith("grid") else OnTokens(mixer), golden, 1e-5)


VARIANTS = {
    "grid": {},
    "after": {"kernel": 1, "kernel_after": 5},
    "heads": {"head_mix": True, "head_mix_after": True, "kernel": None, "norm": False},
    "full": {**FULL, "gate_1d": False, "rescale_layer": 2},
    "left": {"layout": "raster", "kernel": (2, 4), "kernel_after": (3, 2), "pad_key": "left"},
    "right": {"layout": "raster", "kernel": (2, 4), "pad_key": "right", "causal": True, "head_group": 4},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (4, 3)], ids=str)
def test_agrees_with_the_formula_and_its_weights(size, variant):
    torch.manual_seed(0)
    mixer = perturbed(MultiTokenAttention(16, num_heads=4, qkv_bias=True, **VARIANTS[variant])).double()
    x = torch.randn(2, *size, 16, dtype=torch.float64, requires_grad=True)
    weight, results = torch.randn_like(x), []

    def dense(x):
        v = mixer.qkv(x.flatten(1, 2)).chunk(3, -1)[2].unflatten(-1, (4, -1)).transpose(1, 2)
        out = mixer.weights(x) @ v
        out = out if mixer.subln is None else mixer.subln(out) * mixer.rescale
        out = out if mixer.gate is None else out * mixer.gate(out).sigmoid()
        return mixer.proj(out.transpose(1, 2).flatten(2)).view(x.shape)

    for one in (mixer, naive_of(mixer), dense):
        out = one(x)
        results.append((out, *torch.autograd.grad(out, x, weight)))
    for ours, theirs, of_weights in zip(*results, strict=True):
        assert relative_error(ours, theirs) < 1e-9 and relative_error(of_weights, theirs) < 1e-9


STARTS = {
    **VARIANTS,
    "grid": {"kernel_after": 3},
    "full": {"kernel_after": 3, "head_group": 2, "head_mix": True},
}


@pytest.mark.parametrize("variant", [name for name in STARTS if "causal" not in STARTS[name]])
def test_starts_as_plain_attention_and_a_norm(variant):
    torch.manual_seed(0)
    mixer = MultiTokenAttention(16, num_heads=4, qkv_bias=True, proj_bias=True, **{**STARTS[variant], "norm": False})
    plain = SoftmaxAttention(16, num_heads=4)
    plain.load_state_dict(mixer.state_dict(), strict=False)
    tokens = torch.randn(2, 2 + 15, 16)
    bias = torch.randn(4, 17, 17)
    for given in ({}, {"bias": bias}, {"rotate": torch.sin}):
        expected = plain.forward_tokens(tokens, (3, 5), 2, **given)
        torch.testing.assert_close(mixer.forward_tokens(tokens, (3, 5), 2, **given), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("after", [None, 3])
def test_scores_of_extra_tokens_are_not_convolved(after):
    """The way without the matrix of weights against the way with it, which a mixing of heads by the identity takes."""
    torch.manual_seed(0)
    mixer = perturbed(MultiTokenAttention(16, num_heads=4, kernel_after=after)).double()
    dense = MultiTokenAttention(16, num_heads=4, kernel_after=after, head_mix_after=True).double()
    assert dense.load_state_dict(mixer.state_dict(), strict=False).missing_keys == ["wposm.weight"]
    tokens, bias = torch.randn(2, 2 + 12, 16).double(), torch.randn(4, 14, 14).double()
    out, expected = (m.forward_tokens(tokens, (3, 4), 2, bias=bias) for m in (mixer, dense))
    assert relative_error(out, expected) < 1e-9
    rows, shifted = mixer.weights(tokens, (3, 4), 2), mixer.weights(tokens[:, 1:], (3, 4), 1)
    assert rows.shape == (2, 4, 14, 14) and not torch.allclose(rows[:, :, 1:, 1:], shifted)
    if after is None:  # of extra queries no score is convolved
        q, k, _ = mixer.qkv(tokens).chunk(3, -1)
        q, k = (part.unflatten(-1, (4, -1)).transpose(1, 2) for part in (q, k))
        torch.testing.assert_close(rows[:, :, :2], (q[:, :, :2] @ k.mT / 2).softmax(-1))


def test_flipped_kernels_on_flipped_maps():
    torch.manual_seed(0)
    mixer = perturbed(MultiTokenAttention(16, num_heads=4, kernel_after=3))
    x = torch.randn(2, 4, 5, 16)
    expected = mixer(x).flip(2)
    with torch.no_grad():
        for name, parameter in mixer.named_parameters():
            if name.startswith("kernel"):
                parameter.copy_(parameter.flip(3))
    torch.testing.assert_close(mixer(x.flip(2)), expected, rtol=1e-4, atol=1e-5)


def test_in_the_place_of_a_networks_attention():
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", embed_dim=48, num_heads=3, depth=2, num_classes=5, img_size=64)
    x = torch.randn(2, 3, 64, 64)
    before = model.eval()(x)
    replace_attention(model, "mta", norm=False, head_mix=True, kernel_after=3)
    torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-5)
    assert model.replaced[0].new == ("kernel_k", "kernel_q", "kernel_k_after", "kernel_q_after", "wpsm.weight")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_heads": 3}, "dim=8, num_heads=3"),
        ({"kernel": 2}, "kernel must be a positive odd number, got 2"),
        ({"kernel": (3, 3)}, "kernel must be a positive odd number with layout='grid', got"),
        ({"kernel_after": (3, 4), "layout": "raster"}, "kernel_after must be odd over the keys"),
        ({"layout": "rows"}, "layout must be one of grid, raster, got 'rows'"),
        ({"pad_key": "up", "layout": "raster"}, "pad_key must be one of both, left, right, got 'up'"),
        ({"causal": True}, "causal and pad_key are for layout='raster', got causal=True"),
        ({"head_group": 3}, "head_group must divide num_heads=4, got 3"),
        ({"head_group": 2, "head_mix_after": True}, "only one of head_group and head_mix_after"),
        ({"rescale_layer": -1}, "rescale_layer must be at least 0, with norm=True, got -1"),
    ],
)
def test_bad_arguments(given, message):
    with pytest.raises(ValueError, match=message):
        MultiTokenAttention(8, **{"num_heads": 4, **given})


def test_tokens_come_with_their_grid():
    with pytest.raises(ValueError, match="weights of tokens need their grid, got grid=None"):
        MultiTokenAttention(8, num_heads=2).weights(torch.randn(1, 6, 8))
