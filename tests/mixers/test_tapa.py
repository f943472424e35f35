"""TAPA against its fixture and its formula, and what distances do."""

from functools import partial

import pytest
import timm
import torch

from visionattn.mixers import TokenAwarePhaseAttention, replace_attention, tapa
from visionattn.ops.query_tiles import CACHED, in_tiles
from visionattn.reference.tapa import naive_of
from visionattn.testing.contracts import perturbed
from visionattn.testing.fixtures import check_module, load, relative_error


def test_agrees_with_the_fixture():
    golden = load("tapa_2x4x5x32_eval")
    given = golden.meta["constructor"]
    module = TokenAwarePhaseAttention(
        given["dim"], num_heads=given["heads"], amplitude=given["amplitude"], alpha=given["alpha"]
    )
    module.load_state_dict(golden.state_dict)
    check_module(module, golden, 1e-5)


@pytest.mark.parametrize("held", [0, 100, CACHED], ids=["one query", "some", "all"])
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (4, 3)], ids=str)
@pytest.mark.parametrize("given", [{}, {"amplitude": 2, "alpha": 0.5}, {"alpha": 0.0}, {"phase": "linear"}], ids=str)
def test_agrees_with_the_formula(size, given, held, monkeypatch):
    monkeypatch.setattr(tapa, "in_tiles", partial(in_tiles, held=held))
    torch.manual_seed(0)
    module = perturbed(TokenAwarePhaseAttention(24, num_heads=3, qkv_bias=True, **given)).double()
    x = torch.randn(2, *size, 24, dtype=torch.float64, requires_grad=True)
    weight, results = torch.randn_like(x), []
    for one in (module, naive_of(module)):
        out = one(x)
        wanted = (x, *(one if one is module else one.module).parameters())
        results.append((out, *torch.autograd.grad(out, wanted, weight)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("amplitude", [4, 8], ids=["phases", "none"])
def test_weights_are_what_is_applied(amplitude):
    torch.manual_seed(0)
    module = perturbed(TokenAwarePhaseAttention(16, num_heads=2, amplitude=amplitude)).double()
    x = torch.randn(2, 3, 4, 16).double()
    values = module.qkv(x.flatten(1, 2))[..., 32:].unflatten(-1, (2, -1)).transpose(1, 2)
    mixed = (module.weights(x) @ values).transpose(1, 2).flatten(2)
    torch.testing.assert_close(module(x), module.proj(mixed).view(x.shape))


def test_sees_distances_only():
    """Turned maps give turned results if rows and columns have the same features; extra tokens see no distances."""
    torch.manual_seed(0)
    module = perturbed(TokenAwarePhaseAttention(16, num_heads=2, alpha=0.7))
    x = torch.randn(1, 3, 4, 16)
    torch.testing.assert_close(module(x.flip(1)), module(x).flip(1))
    torch.testing.assert_close(module(x.flip(2)), module(x).flip(2))
    shuffled = x.flatten(1, 2)[:, torch.randperm(12)].view(x.shape)
    tokens = torch.cat([torch.randn(1, 1, 16), x.flatten(1, 2)], 1)
    other = torch.cat([tokens[:, :1], shuffled.flatten(1, 2)], 1)
    ours, theirs = (module.forward_tokens(t, (3, 4), prefix=1) for t in (tokens, other))
    torch.testing.assert_close(ours[:, 0], theirs[:, 0])
    assert relative_error(ours[:, 1:].mean(1), theirs[:, 1:].mean(1)) > 1e-3


def test_starts_near_plain_attention():
    torch.manual_seed(0)
    module = TokenAwarePhaseAttention(32, num_heads=2)
    x = torch.randn(1, 4, 4, 32)
    q, k, _ = module.qkv(x.flatten(1, 2)).unflatten(-1, (3, 2, 16)).permute(2, 0, 3, 1, 4)
    plain = (q[..., :8] @ k[..., :8].mT / 8**0.5).softmax(-1)
    assert (module.weights(x) - plain).abs().max() < 0.1 * plain.max()


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "beit_base_patch16_224"])
def test_without_phases_it_leaves_networks_as_they_are(name):
    torch.manual_seed(0)
    model = timm.create_model(name, embed_dim=48, num_heads=3, depth=2, num_classes=5, img_size=64).eval()
    x = torch.randn(2, 3, 64, 64)
    before = model(x)
    replace_attention(model, "tapa", amplitude=16)
    torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-5)


def test_is_refused_where_positions_are_rotations():
    model = timm.create_model("eva02_tiny_patch14_224", embed_dim=48, num_heads=3, depth=1, img_size=56)
    with pytest.raises(ValueError, match="gets rotary embeddings, which tapa cannot take"):
        replace_attention(model, "tapa")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 8, "num_heads": 3}, "dim=8, num_heads=3"),
        ({"dim": 12, "num_heads": 2}, "must be a multiple of 4, got 12 / 2"),
        ({"dim": 16, "num_heads": 2, "amplitude": 3}, "amplitude must be in 1 to 8, .* even number, got 3"),
        ({"dim": 16, "num_heads": 2, "amplitude": 10}, "got 10"),
        ({"dim": 16, "num_heads": 2, "alpha": -0.5}, r"alpha must be at least 0, got -0\.5"),
        ({"dim": 16, "num_heads": 2, "phase": "cubic"}, "phase must be one of quadratic, linear, got 'cubic'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        TokenAwarePhaseAttention(**arguments)
