"""VMoBA against the official code, softmax attention and what it promises."""

import pytest
import timm
import torch

import visionattn
from visionattn.mixers import BlockRoutedAttention, SoftmaxAttention
from visionattn.ops import route_blocks
from visionattn.testing.fixtures import check_module, load, relative_error

NAMES = ("strip_threshold_1x10x7x64", "tile_headglobal_1x8x8x48", "tile_topk_2x6x8x48")


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_official_code(name):
    golden = load(f"vmoba_{name}_eval")
    said = golden.meta["constructor"]
    mixer = BlockRoutedAttention(
        said["dim"],
        num_heads=said["heads"],
        block=said["chunk"],
        select=said["select_mode"],
        scope=said["threshold_type"],
        threshold=said["simsum_threshold"],
        topk=said["topk"],
    )
    mixer.load_state_dict(golden.state_dict)
    grid = tuple(said["grid"])
    assert torch.equal(mixer.routes(golden.input.unflatten(1, grid)).float(), golden.arrays["out_1"])

    class OnTokens(torch.nn.Module):
        def forward(self, x):
            return mixer.forward_tokens(x, grid)

    check_module(OnTokens(), golden, 1e-5)


@pytest.mark.parametrize(
    "arguments",
    [{"threshold": 1.0}, {"block": (20, 20)}, {"select": "topk", "topk": 99, "scope": "overall"}],
    ids=lambda a: "-".join(a),
)
def test_all_blocks_are_full_attention(arguments):
    torch.manual_seed(0)
    mixer = BlockRoutedAttention(24, **{"num_heads": 3, "block": (2, 3), **arguments})
    plain = SoftmaxAttention(24, num_heads=3)
    plain.load_state_dict(mixer.state_dict())
    x = torch.randn(2, 5, 7, 24)
    torch.testing.assert_close(mixer(x), plain(x))


def test_takes_the_place_of_timms_attention():
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=3, num_classes=5).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        exact = visionattn.replace_attention(model, "vmoba", threshold=1.0)
        assert relative_error(exact(x), expected) < 1e-5
        assert [exact.blocks[i].attn.mixer.block for i in range(3)] == [(1, 4), (4, 1), (2, 2)]
        for block in exact.blocks:
            block.attn.mixer.threshold = 0.1
        assert relative_error(exact(x), expected) > 1e-3


def test_takes_rotations_and_biases():
    torch.manual_seed(0)
    mixer = BlockRoutedAttention(24, num_heads=3, block=(2, 2), threshold=1.0)
    plain = SoftmaxAttention(24, num_heads=3)
    plain.load_state_dict(mixer.state_dict())
    x, bias = torch.randn(2, 13, 24), torch.randn(3, 13, 13)
    given = {"rotate": lambda t: t.roll(1, 2), "bias": bias}
    torch.testing.assert_close(mixer.forward_tokens(x, (3, 4), 1, **given), plain.forward_tokens(x, (3, 4), 1, **given))


def test_weights_are_what_it_applies():
    torch.manual_seed(0)
    mixer = BlockRoutedAttention(24, num_heads=3, block=(2, 2), threshold=0.1)
    x = torch.randn(2, 2 + 20, 24)
    weights = mixer.weights(x, (4, 5), 2)
    assert (weights == 0).any() and (weights[:, :, :2] > 0).all() and (weights[..., :2] > 0).all()
    v = mixer._heads(x)[2]
    out = mixer.proj((weights @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(mixer.forward_tokens(x, (4, 5), 2), out)
    with pytest.raises(ValueError, match="need their grid"):
        mixer.weights(x)


@pytest.mark.parametrize("scope", ["query_head", "head_global", "overall"])
def test_topk_counts_the_blocks_of_a_scope(scope):
    torch.manual_seed(0)
    own = torch.eye(4, dtype=torch.bool).repeat_interleave(3, 0)
    chosen = route_blocks(torch.randn(2, 3, 12, 4), own, select="topk", scope=scope, topk=2)
    axes = {"query_head": (3,), "head_global": (2, 3), "overall": (1, 2, 3)}[scope]
    share = chosen.double().sum(axes)
    assert (share == share.flatten()[0]).all() and chosen.double().mean() == 0.5 and chosen[:, :, own].all()


def test_legacy_compares_the_images_of_a_batch():
    torch.manual_seed(0)
    x = torch.randn(3, 6, 6, 24)
    x[0] *= 10
    settings = {"num_heads": 3, "block": (2, 2)}
    mixer = BlockRoutedAttention(24, **settings, threshold=0.6)
    assert relative_error(mixer(x)[1:], mixer(x[1:])) < 1e-6
    mixer.legacy = True
    assert relative_error(mixer(x)[1:], mixer(x[1:])) > 1e-3


def test_own_blocks_alone():
    """With one block for each query there is nothing else to see; the official code falls back to all blocks."""
    torch.manual_seed(0)
    mixer = BlockRoutedAttention(24, num_heads=3, block=(2, 2), select="topk", scope="query_head", topk=1)
    x = torch.randn(1, 4, 4, 24)
    assert mixer.routes(x).sum() == 3 * 16
    mixer.legacy = True
    assert mixer.routes(x).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": 1.5}, r"threshold must be from 0 to 1, got 1\.5"),
        ({"threshold": -0.1}, r"threshold must be from 0 to 1, got -0\.1"),
        ({"topk": 0}, "topk must be at least 1, got 0"),
        ({"block": (0, 3)}, r"block must be .* at least 1, got \(0, 3\)"),
        ({"block": 1.5}, r"block must be two sides or a share of the tokens, above 0 to 1, got 1\.5"),
        ({"select": "best"}, "select must be one of topk, threshold, got 'best'"),
        ({"select": "topk", "scope": "block"}, "scope of topk must be one of query_head, head_global, overall"),
        ({"num_heads": 5}, "num_heads must divide dim, got dim=24, num_heads=5"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        BlockRoutedAttention(24, **{"num_heads": 3, **arguments})
