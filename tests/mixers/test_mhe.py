"""MHE attention against an independent implementation, and what its heads share."""

import pytest
import timm
import torch

from visionattn.mixers import MultiHeadEmbeddingAttention, replace_attention
from visionattn.profiling.operator_counter import saved_bytes
from visionattn.reference.mhe import naive_of
from visionattn.testing.contracts import perturbed
from visionattn.testing.fixtures import check_module, load


@pytest.mark.parametrize("mode", ["mul", "add"])
def test_golden(mode):
    golden = load(f"mhe_{mode}_2x5x7x48_eval")
    mixer = MultiHeadEmbeddingAttention(48, num_heads=4, mode=mode)
    mixer.load_state_dict(golden.state_dict)
    check_module(mixer, golden, 1e-5)


@pytest.mark.parametrize("head_dim", [None, 5])
@pytest.mark.parametrize("mode", ["mul", "add"])
@pytest.mark.parametrize("size", [(1, 1), (1, 6), (4, 3)], ids=str)
def test_agrees_with_the_formula(size, mode, head_dim):
    torch.manual_seed(0)
    mixer = perturbed(MultiHeadEmbeddingAttention(12, num_heads=3, mode=mode, head_dim=head_dim, embed_std=1.0))
    x = torch.randn(2, *size, 12, dtype=torch.float64, requires_grad=True)
    weight, results = torch.randn_like(x), []
    mixer = mixer.double()
    parameters = [p for name, p in sorted(mixer.named_parameters()) if mode == "mul" or name != "embed_k"]
    out = mixer(x)
    results.append((out, *torch.autograd.grad(out, (x, *parameters), weight)))
    naive = naive_of(mixer)
    own = [p for name, p in sorted(naive.module.named_parameters()) if mode == "mul" or name != "embed_k"]
    out = naive(x)
    results.append((out, *torch.autograd.grad(out, (x, *own), weight)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("mode", ["mul", "add"])
def test_position_handed_by_a_host(mode):
    torch.manual_seed(0)
    mixer = perturbed(MultiHeadEmbeddingAttention(12, num_heads=3, mode=mode, embed_std=1.0))
    tokens = torch.randn(2, 1 + 6, 12)
    shared = mixer.forward_tokens(tokens, (2, 3), 1)
    for given in (
        {"bias": torch.zeros(3, 7, 7)},
        {"rotate": torch.neg},
        {"bias": torch.zeros(3, 7, 7), "rotate": torch.neg},
    ):
        torch.testing.assert_close(mixer.forward_tokens(tokens, (2, 3), 1, **given), shared)
    bias = torch.zeros(3, 7, 7)
    bias[:, :, 0] = -1e4  # nobody sees the extra token
    without = mixer.forward_tokens(tokens[:, 1:], (2, 3))
    torch.testing.assert_close(mixer.forward_tokens(tokens, (2, 3), 1, bias=bias)[:, 1:], without)
    model = timm.create_model("eva02_tiny_patch14_224", embed_dim=48, num_heads=3, depth=1, img_size=56).eval()
    assert replace_attention(model, "mhe", weights="new")(torch.randn(1, 3, 56, 56)).isfinite().all()


@pytest.mark.parametrize("mode", ["mul", "add"])
def test_weights_are_what_it_applies(mode):
    torch.manual_seed(0)
    mixer = perturbed(MultiHeadEmbeddingAttention(12, num_heads=3, mode=mode, embed_std=1.0))
    x = torch.randn(2, 2, 3, 12)
    rows = mixer.weights(x)
    assert rows.shape == (2, 3, 6, 6)
    torch.testing.assert_close(rows.sum(-1), torch.ones(2, 3, 6))
    v = mixer._embed(mixer.v(x.flatten(1, 2)), mixer.embed_v)
    torch.testing.assert_close(mixer.proj((rows @ v).transpose(1, 2).flatten(2)).view(x.shape), mixer(x))


def test_heads_cost_three_vectors_each():
    def count(heads):
        module = MultiHeadEmbeddingAttention(12, num_heads=heads, head_dim=4)
        return sum(p.numel() for name, p in module.named_parameters() if not name.startswith("proj"))

    assert count(5) - count(1) == 4 * 3 * 4


def test_keys_of_added_embeddings_have_a_gradient_of_zero():
    mixer = perturbed(MultiHeadEmbeddingAttention(12, num_heads=3, mode="add"))
    mixer(torch.randn(2, 2, 3, 12)).square().sum().backward()
    assert mixer.embed_k.grad is not None and not mixer.embed_k.grad.any()
    assert mixer.embed_q.grad.any() and mixer.embed_v.grad.any()


def test_keeps_fewer_bytes_than_its_formula():
    mixer, x = MultiHeadEmbeddingAttention(96, num_heads=3), torch.randn(2, 14, 14, 96)
    assert saved_bytes(mixer, x) < 0.4 * saved_bytes(naive_of(mixer), x)


def test_no_decay_of_embeddings():
    model = timm.create_model("va_vit_mhe_nano")
    assert {"blocks.0.attn.fn.embed_q", "blocks.7.attn.fn.embed_v"} <= model.no_weight_decay()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_heads": 3}, "dim=8, num_heads=3"),
        ({"num_heads": 0, "head_dim": 2}, "num_heads must be at least 1, got 0"),
        ({"head_dim": 0}, "head_dim must be at least 1, got 0"),
        ({"mode": "sum"}, "mode must be one of mul, add, got 'sum'"),
        ({"embed_std": -1.0}, r"embed_std must be at least 0, got -1\.0"),
    ],
)
def test_bad_arguments(given, message):
    with pytest.raises(ValueError, match=message):
        MultiHeadEmbeddingAttention(8, **given)
