"""Dynamic mask attention against the official code, and what it keeps."""

import pytest
import timm
import torch

from visionattn.mixers import DynamicMaskAttention, replace_attention
from visionattn.profiling.operator_counter import saved_bytes
from visionattn.reference.dynamic_mask import naive_of
from visionattn.testing.contracts import perturbed
from visionattn.testing.fixtures import check_module, load, relative_error

FIXTURES = {
    "open_2x35x32_w9": {"keep": 9},
    "open_gqa_2x24x32_w6": {"keep": 6, "num_kv_heads": 2},
    "causal_2x24x32_w8": {"keep": 8, "causal": True},
}


class OnTokens(torch.nn.Module):
    def __init__(self, mixer):
        super().__init__()
        self.mixer = mixer

    def forward(self, x):
        return self.mixer.forward_tokens(x, (1, x.shape[1]))


@pytest.mark.parametrize("name", FIXTURES)
def test_golden(name):
    golden = load(f"dma_{name}_eval")
    mixer = DynamicMaskAttention(32, num_heads=4, **FIXTURES[name])
    mixer.load_state_dict(golden.state_dict)
    check_module(OnTokens(mixer), golden, 1e-5)


VARIANTS = {
    "share": {"keep": 0.3, "rope": True},
    "all": {"keep": 1.0, "qkv_bias": True},
    "grouped": {"keep": 3, "num_kv_heads": 2},
    "blocks": {"keep": 0.5, "block_size": 3, "num_kv_heads": 1},
    "relu": {"selection": "relu", "qk_norm": False},
    "relu blocks": {"selection": "relu", "block_size": 2, "causal": True},
    "causal": {"keep": 2, "causal": True, "num_kv_heads": 2, "rope": True},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (4, 3)], ids=str)
def test_agrees_with_the_formula_and_its_weights(size, variant):
    torch.manual_seed(0)
    mixer = perturbed(DynamicMaskAttention(16, num_heads=4, **VARIANTS[variant])).double()
    x = torch.randn(2, *size, 16, dtype=torch.float64, requires_grad=True)
    weight, results = torch.randn_like(x), []

    def dense(x):
        v = mixer.v_proj(x.flatten(1, 2)).unflatten(-1, (mixer.num_kv_heads, -1)).transpose(1, 2)
        v = v.repeat_interleave(4 // mixer.num_kv_heads, 1)
        return mixer.o_proj((mixer.weights(x) @ v).transpose(1, 2).flatten(2)).view(x.shape)

    for one in (mixer, naive_of(mixer), dense):
        out = one(x)
        results.append((out, *torch.autograd.grad(out, x, weight)))
    for ours, theirs, of_weights in zip(*results, strict=True):
        assert relative_error(ours, theirs) < 1e-9 and relative_error(of_weights, theirs) < 1e-9


@pytest.mark.parametrize(("keep", "count"), [(0.25, 4), (0.01, 1), (1.0, 15), (1, 1), (7, 7), (99, 15)])
def test_keeps_as_many_keys_as_asked(keep, count):
    torch.manual_seed(0)
    mixer = DynamicMaskAttention(16, num_heads=4, num_kv_heads=2, keep=keep)
    x = torch.randn(2, 3, 5, 16)
    kept = mixer.kept(x)
    assert kept.shape == (2, 2, 3, 5) and (kept.flatten(2).sum(-1) == count).all()
    seen = (mixer.weights(x) > 0).any(2).unflatten(1, (2, 2))
    assert torch.equal(seen.all(2), kept.flatten(2)) and torch.equal(seen.any(2), kept.flatten(2))


def test_the_first_of_equal_keys_is_kept():
    mixer = DynamicMaskAttention(16, num_heads=4, keep=3)
    torch.nn.init.zeros_(mixer.A)
    kept = mixer.kept(torch.randn(2, 3, 5, 16)).flatten(2)
    assert kept[..., :3].all() and not kept[..., 3:].any()


def test_whole_blocks_and_never_none():
    mixer = DynamicMaskAttention(4, num_heads=1, keep=5, block_size=4)
    lift = torch.tensor([[[5.0, 4.0, 3.0, 0.0, 2.0, 0.0, 0.0, 0.0, 0.0, 1.0]]])  # blocks of 4, 4 and 2
    assert mixer._chosen(lift)[0, 0, 0].tolist() == [True] * 4 + [False] * 6
    scattered = torch.tensor([[[0.0, 4.0, 0.0, 3.0, 2.0, 0.0, 0.0, 9.0, 1.0, 0.0]]])
    assert mixer._chosen(scattered)[0, 0, 0].nonzero().flatten().tolist() == [7]
    mixer = DynamicMaskAttention(4, num_heads=1, selection="relu")
    assert mixer._chosen(-lift - 1)[0, 0, 0].nonzero().flatten().tolist() == [3]


def test_only_kept_keys_have_gradients():
    torch.manual_seed(0)
    mixer = perturbed(DynamicMaskAttention(16, num_heads=1, keep=4))
    x = torch.randn(1, 3, 5, 16, requires_grad=True)
    kept = mixer.kept(x)[0, 0].flatten()
    row = mixer(x)[0, 0, 0].square().sum()  # of one query
    touched = torch.autograd.grad(row, x)[0].abs().sum(-1).flatten() > 0
    kept[0] = True
    assert torch.equal(touched, kept)


@pytest.mark.parametrize("rope", [False, True])
def test_extra_tokens_are_always_kept(rope):
    torch.manual_seed(0)
    mixer = perturbed(DynamicMaskAttention(16, num_heads=4, num_kv_heads=2, keep=4, rope=rope))
    tokens = torch.randn(2, 2 + 12, 16)
    out = mixer.forward_tokens(tokens, (3, 4), 2)
    zero = torch.zeros(4, 14, 14)
    torch.testing.assert_close(mixer.forward_tokens(tokens, (3, 4), 2, bias=zero), out)
    zero[:, :, :2] = -1e4
    torch.testing.assert_close(
        mixer.forward_tokens(tokens, (3, 4), 2, bias=zero)[:, 2:], mixer.forward_tokens(tokens[:, 2:], (3, 4))
    )
    changed = tokens.clone()
    changed[:, 0] += 1
    assert (mixer.forward_tokens(changed, (3, 4), 2) - out).abs().amax(-1).min() > 0
    with pytest.raises(AssertionError):
        torch.testing.assert_close(mixer.forward_tokens(tokens, (3, 4), 2, rotate=torch.sin), out)


def test_rotation_knows_distances_only():
    torch.manual_seed(0)
    mixer = DynamicMaskAttention(16, num_heads=2, keep=1.0, rope=True)
    x = torch.randn(1, 1, 1, 16).expand(1, 4, 5, 16).contiguous()
    q, k, _, _ = mixer._parts(x.flatten(1, 2), (4, 5), 0, None)
    scores = (q @ k.mT).view(2, 4, 5, 4, 5)
    torch.testing.assert_close(scores[:, 0, 0, 1, 2], scores[:, 2, 1, 3, 3])
    assert (scores[:, 0, 0, 1, 2] - scores[:, 0, 0, 2, 1]).abs().max() > 1e-3


def test_holds_no_matrix_of_all_pairs():
    mixer = DynamicMaskAttention(32, num_heads=2, keep=16)
    small, large = (saved_bytes(mixer, torch.randn(1, side, side, 32)) for side in (16, 32))
    assert large < 4.2 * small
    x = torch.randn(1, 28, 28, 32)
    assert saved_bytes(mixer, x) < 0.2 * saved_bytes(naive_of(mixer), x)


def test_in_a_network_with_rotary_embeddings():
    torch.manual_seed(0)
    model = timm.create_model("eva02_tiny_patch14_224", embed_dim=48, num_heads=3, depth=1, img_size=56).eval()
    assert replace_attention(model, "dma", weights="new")(torch.randn(1, 3, 56, 56)).isfinite().all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_heads": 3}, "dim=8, num_heads=3"),
        ({"num_kv_heads": 3}, "num_kv_heads must divide num_heads=4, got 3"),
        ({"keep": 0}, "keep must be an integer of at least 1 or a share above 0.0 and at most 1.0, got 0"),
        ({"keep": 1.5}, "keep must be an integer of at least 1 or a share above 0.0 and at most 1.0, got 1.5"),
        ({"keep": True}, "keep must be an integer"),
        ({"selection": "top"}, "selection must be one of topk, relu, got 'top'"),
        ({"block_size": 0}, "block_size must be at least 1, got 0"),
        ({"rope": True}, "rope needs heads with a multiple of 4 channels, got dim=8, num_heads=4"),
        ({"rope_base": 1.0}, r"rope_base must be above 1, got 1\.0"),
    ],
)
def test_bad_arguments(given, message):
    with pytest.raises(ValueError, match=message):
        DynamicMaskAttention(8, **{"num_heads": 4, **given})


def test_tokens_come_with_their_grid():
    with pytest.raises(ValueError, match="weights of tokens need their grid with rope=True, got grid=None"):
        DynamicMaskAttention(8, num_heads=2, rope=True).weights(torch.randn(1, 6, 8))
