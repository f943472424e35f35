"""Logits averaged over bases of rotary embeddings: what each base gives, and what is refused."""

import copy

import pytest
import timm
import torch

from visionattn.explain import RopeBases

NETWORKS = {
    "eva02_tiny_patch14_224": {"img_size": 56},
    "vit_small_patch16_rope_224": {"img_size": 64},
    "vit_small_patch16_dinov3": {"img_size": 64},
}


def network(name, **more):
    torch.manual_seed(0)
    arguments = {"depth": 2, "embed_dim": 48, "num_heads": 3, "num_classes": 5, **NETWORKS[name], **more}
    model = timm.create_model(name, **arguments).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.3)
    return model, torch.randn(2, 3, arguments["img_size"], arguments["img_size"])


@pytest.fixture(params=NETWORKS)
def given(request):
    return network(request.param)


def rebuilt(model, base):
    """The network as timm builds its rotary embeddings for another base."""
    other = copy.deepcopy(model)
    other.rope.temperature = base
    other.rope.init_non_persistent_buffers()
    return other


def test_averages_networks_of_these_bases(given):
    model, x = given
    own = float(model.rope.temperature)
    before = model(x)
    torch.testing.assert_close(RopeBases(model, [own]).eval()(x), before)
    bases = [own, 3 * own, own / 4]
    single = torch.stack([rebuilt(model, base)(x) for base in bases])
    assert not torch.allclose(single[1], single[0]) and not torch.allclose(single[2], single[0])
    torch.testing.assert_close(RopeBases(model, bases)(x), single.mean(0))
    shares = single.softmax(-1).amax(-1, keepdim=True)
    confident = (single * shares).sum(0) / shares.sum(0)
    torch.testing.assert_close(RopeBases(model, bases, weighting="confidence")(x), confident)
    assert torch.equal(model(x), before)


def test_another_size_of_picture():
    model, _ = network("vit_small_patch16_rope_224", dynamic_img_size=True)
    x = torch.randn(1, 3, 96, 96)
    expected = (model(x) + rebuilt(model, 40.0)(x)) / 2
    torch.testing.assert_close(RopeBases(model, [float(model.rope.temperature), 40.0])(x), expected)


def test_the_network_learns_and_keeps_its_names(given):
    model, x = given
    keys = set(model.state_dict())
    buckets = RopeBases(model, [10.0, 1000.0])
    assert set(buckets.state_dict()) == {f"model.{key}" for key in keys}
    buckets(x).sum().backward()
    assert all(p.grad is not None for p in model.blocks.parameters() if p.requires_grad)


def test_export():
    model, x = network("vit_small_patch16_rope_224")
    buckets = RopeBases(model, [10.0, 1000.0]).eval()
    program = torch.export.export(buckets, (x,))
    torch.testing.assert_close(program.module()(x), buckets(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("eva02_tiny_patch14_224", {"bases": []}, r"bases must be numbers above 0, at least one, got \[\]"),
        ("eva02_tiny_patch14_224", {"bases": [100, 0]}, r"bases must be numbers above 0, .* got \[100, 0\]"),
        ("eva02_tiny_patch14_224", {"bases": [1], "weighting": "best"}, "weighting must be one of mean, confidence"),
    ],
)
def test_bad_arguments(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        RopeBases(network(name)[0], **arguments)


def test_networks_without_a_base():
    plain = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=32)
    with pytest.raises(ValueError, match="VisionTransformer has no rotary embeddings of timm's with a base"):
        RopeBases(plain, [100.0])
    mixed = timm.create_model("vit_small_patch16_rope_mixed_224", depth=1, img_size=32)
    with pytest.raises(ValueError, match="the rotary embeddings of Eva are not made from a base"):
        RopeBases(mixed, [100.0])
