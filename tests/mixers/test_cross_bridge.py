"""The gated bridge between two encoders: its formula, its start, what it trains, and what it refuses."""

import pytest
import timm
import torch

from visionattn import catalog
from visionattn.mixers import GatedCrossAttention, resolve_mixer
from visionattn.reference.cross_bridge import naive_of
from visionattn.testing.contracts import perturbed
from visionattn.testing.fixtures import relative_error


@pytest.fixture
def bridge():
    torch.manual_seed(0)
    return perturbed(GatedCrossAttention(12, source_dim=20, num_heads=2, head_dim=5, hidden_dim=7)).double()


def sets(first=5, second=9):
    return [
        torch.randn(2, count, dim, dtype=torch.float64, requires_grad=True)
        for count, dim in ((first, 12), (second, 20))
    ]


@pytest.mark.parametrize("sizes", [(1, 1), (5, 9), (7, 2)], ids=str)
def test_agrees_with_the_formula(bridge, sizes):
    both, results = sets(*sizes), []
    for one in (bridge, naive_of(bridge)):
        wanted = (*both, *(one if one is bridge else one.module).parameters())
        out = one(*both)
        results.append((out, *torch.autograd.grad(out.square().sum(), wanted)))
    for ours, literal in zip(*results, strict=True):
        assert relative_error(ours, literal) < 1e-9 or literal.abs().max() < 1e-12  # biases of keys have no gradient


def test_a_new_bridge_changes_nothing_and_learns():
    bridge = GatedCrossAttention(8, num_heads=2)
    x, source = torch.randn(2, 3, 8), torch.randn(2, 4, 8)
    assert torch.equal(bridge(x, source), x)
    bridge(x, source).sum().backward()
    assert bridge.adapter[-1].weight.grad.abs().sum() > 0


def test_weights_are_what_is_applied(bridge):
    x, source = sets()
    v = bridge.kv(source).chunk(2, -1)[1].unflatten(-1, (2, -1)).transpose(1, 2)
    read = (bridge.weights(x, source) @ v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(bridge(x, source), x + bridge.gate(x).sigmoid() * bridge.adapter(read))


def test_masked_tokens_are_as_if_they_were_not_there(bridge):
    x, source = sets()
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[:, 4:] = False
    torch.testing.assert_close(bridge(x, source, mask), bridge(x, source[:, :4]))


def test_takes_maps_of_any_sizes_and_keeps_pictures_apart(bridge):
    x, source = (torch.randn(2, *shape, dtype=torch.float64) for shape in ((3, 4, 12), (1, 5, 20)))
    out = bridge(x, source)
    assert out.shape == x.shape
    torch.testing.assert_close(out.flatten(1, 2), bridge(x.flatten(1, 2), source.flatten(1, 2)))
    torch.testing.assert_close(out[:1], bridge(x[:1], source[:1]))


def test_a_small_encoder_reads_a_large_frozen_one():
    """Only the bridge and the small encoder learn; without the bridge's layers the small one is as it was."""
    torch.manual_seed(0)
    options = {"img_size": 32, "patch_size": 8, "depth": 1, "num_classes": 3}
    small = timm.create_model("vit_tiny_patch16_224", embed_dim=24, num_heads=2, **options)
    large = timm.create_model("vit_tiny_patch16_224", embed_dim=48, num_heads=4, **options).requires_grad_(False).eval()
    bridge = GatedCrossAttention(24, source_dim=48, num_heads=2)
    images = torch.randn(2, 3, 32, 32)

    def run():
        return small.forward_head(bridge(small.forward_features(images), large.forward_features(images)))

    torch.testing.assert_close(run(), small(images))
    optimizer = torch.optim.SGD([*small.parameters(), *bridge.parameters()], lr=1.0)
    for _ in range(2):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(run(), torch.tensor([0, 1])).backward()
        optimizer.step()
    assert all(p.grad is None for p in large.parameters())
    assert bridge.kv.weight.grad.abs().sum() > 0 and not torch.allclose(run(), small(images))


def test_compile_export_half_precision_and_meta():
    bridge = perturbed(GatedCrossAttention(12, source_dim=20, num_heads=3))
    x, source = torch.randn(2, 5, 12), torch.randn(2, 9, 20)
    expected = bridge(x, source)
    compiled = torch.compile(bridge, fullgraph=True, backend="aot_eager")(x, source)
    assert relative_error(compiled, expected) < 1e-5
    batch = {0: torch.export.Dim.DYNAMIC}
    program = torch.export.export(bridge, (x, source), dynamic_shapes={"x": batch, "source": batch})
    assert relative_error(program.module()(x.repeat(2, 1, 1), source.repeat(2, 1, 1))[:2], expected) < 1e-5
    half = GatedCrossAttention(12, source_dim=20, num_heads=3, dtype=torch.bfloat16)
    half.load_state_dict(bridge.state_dict())
    out = half(x.bfloat16(), source.bfloat16())
    assert out.dtype == torch.bfloat16 and relative_error(out, expected) < 0.05
    meta = GatedCrossAttention(12, source_dim=20, num_heads=3, device="meta")
    assert meta(x.to("meta"), source.to("meta")).shape == x.shape


def test_is_found_and_says_that_it_needs_two_sets():
    assert catalog.get("mixer", "cross_bridge").factory is GatedCrossAttention
    with pytest.raises(ValueError, match=r"'cross_bridge' needs more than a map \(source\)"):
        resolve_mixer("cross_bridge")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": 3}, "dim=8, num_heads=3"),
        ({"num_heads": 3, "head_dim": 0}, "head_dim must be at least 1, got 0"),
        ({"source_dim": 0}, "source_dim must be at least 1, got 0"),
        ({"hidden_dim": 0}, "hidden_dim must be at least 1, got 0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        GatedCrossAttention(8, **arguments)


def test_bad_input():
    bridge, x, source = GatedCrossAttention(8, source_dim=6), torch.randn(2, 3, 8), torch.randn(2, 4, 6)
    for wrong, message in (
        ((source, x), r"x must be tokens \(B, N, 8\) or a map \(B, H, W, 8\), got \(2, 4, 6\)"),
        ((x, x), r"source must be tokens \(B, N, 6\) .*, got \(2, 3, 8\)"),
        ((x, source[:1]), "x and source must have the same batch"),
        ((x, source, torch.ones(2, 4)), r"mask must be bool of shape \(2, 4\), got torch.float32"),
        ((x, source, torch.ones(2, 3, dtype=torch.bool)), r"mask must be bool of shape \(2, 4\), got .* \(2, 3\)"),
    ):
        with pytest.raises(ValueError, match=message):
            bridge(*wrong)
