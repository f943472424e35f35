"""SpargeAttn against the official code, softmax attention and what it promises."""

import pytest
import timm
import torch

import visionattn
from visionattn.mixers import SoftmaxAttention, SpargeAttention
from visionattn.ops import BlockMap, hilbert_order
from visionattn.testing.fixtures import check_module, load, relative_error


@pytest.mark.parametrize("name", ["topk_1x128x48_q32k16", "cdf_2x96x64_q16k16", "topk_partial_1x145x32_q32k16"])
@pytest.mark.parametrize("by_name", [False, True], ids=["option", "mixer"])
def test_equals_the_official_code(name, by_name):
    golden = load(f"sparge_{name}_eval")
    said = golden.meta["constructor"]
    settings = {
        "block": (said["block_q"], said["block_k"]),
        "topk": said["topk"],
        "cdf": said["cdfthreshd"],
        "sim_threshold": said["simthreshd1"],
    }
    if by_name:
        mixer = SpargeAttention(said["dim"], num_heads=said["heads"], smooth_k=said["smooth_k"], **settings)
    else:
        mixer = SoftmaxAttention(said["dim"], num_heads=said["heads"], sparse={"smooth": said["smooth_k"], **settings})
    mixer.load_state_dict(golden.state_dict)
    grid = (1, golden.input.size(1))
    assert torch.equal(mixer.routes(golden.input.unflatten(1, grid)).float(), golden.arrays["out_1"])

    class OnTokens(torch.nn.Module):
        def forward(self, x):
            return mixer.forward_tokens(x, grid)

    check_module(OnTokens(), golden, 1e-5)


def test_takes_the_place_of_timms_attention():
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=96, depth=2, num_classes=5).eval()
    x = torch.randn(2, 3, 96, 96)
    names = [*model.state_dict()]
    with torch.no_grad():
        expected = model(x)
        exact = visionattn.replace_attention(model, "sparge", topk=1.0)
        assert relative_error(exact(x), expected) < 1e-5
        assert [*exact.state_dict()] == names
        for block in exact.blocks:
            block.attn.mixer.sparse = BlockMap(block=(6, 6), topk=0.2)
        assert relative_error(exact(x), expected) > 1e-3


def test_takes_rotations_and_biases():
    torch.manual_seed(0)
    mixer, plain = SpargeAttention(24, num_heads=3, block=4, topk=1.0), SoftmaxAttention(24, num_heads=3)
    plain.load_state_dict(mixer.state_dict())
    x, bias = torch.randn(2, 13, 24), torch.randn(3, 13, 13)
    given = {"rotate": lambda t: t.roll(1, 2), "bias": bias}
    torch.testing.assert_close(mixer.forward_tokens(x, (3, 4), 1, **given), plain.forward_tokens(x, (3, 4), 1, **given))


@pytest.mark.parametrize("order", ["raster", "hilbert"])
@pytest.mark.parametrize("grid", [(4, 5), (40, 26)], ids=["mask", "skipping"])
def test_weights_are_what_it_applies(order, grid):
    torch.manual_seed(0)
    mixer = SpargeAttention(24, num_heads=3, block=(16, 4), topk=0.25, order=order)
    x = torch.randn(2, 2 + grid[0] * grid[1], 24)
    weights = mixer.weights(x, grid, 2)
    assert (weights == 0).any() and (weights[:, :, :2] > 0).all() and (weights[..., :2] > 0).all()
    out = mixer.proj((weights @ mixer._heads(x)[2]).transpose(1, 2).flatten(2))
    torch.testing.assert_close(mixer.forward_tokens(x, grid, 2), out)
    with pytest.raises(ValueError, match="need their grid here, got grid=None"):
        mixer.weights(x)


def test_every_head_has_its_own_levels():
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 3, 64, 8)
    seen, *_ = BlockMap(block=8, topk=(1 / 8, 0.5, 1.0)).choose(q, k, (8, 8))
    assert seen.sum(-1).float().mean(-1).flatten().tolist() == [1, 4, 8]
    seen, *_ = BlockMap(block=8, cdf=(0.0, 0.5, 1.0), sim_threshold=-1.0).choose(q, k, (8, 8))
    assert (seen.sum((0, 2, 3)).diff() > 0).all() and (seen[:, 0].sum(-1) == 1).all()


@pytest.mark.parametrize("name", ["topk", "cdf", "sim_threshold"])
def test_levels_are_one_or_as_many_as_heads(name):
    for levels in (0.5, (0.5,), (0.1, 0.5, 0.9)):
        BlockMap(**{name: levels}).check_heads(3)
    with pytest.raises(ValueError, match=rf"{name} must be one number or 3, one for each head, got \(0.1, 0.5\)"):
        BlockMap(**{name: (0.1, 0.5)}).check_heads(3)


def test_doubtful_blocks_are_never_left_out():
    torch.manual_seed(0)
    alike = torch.randn(8, 8).repeat_interleave(8, 0)
    mixed = alike.clone()
    mixed[16:24] = torch.randn(8, 8)
    settings = BlockMap(block=8, topk=1 / 8, sim_threshold=0.9, smooth=False)
    seen, *_ = settings.choose(mixed[None, None], alike[None, None], (8, 8))
    assert seen[0, 0].sum(-1).tolist() == [1, 1, 8, 1, 1, 1, 1, 1]
    seen, *_ = settings.choose(alike[None, None], mixed[None, None], (8, 8))
    assert seen[0, 0, :, 2].all() and (seen[0, 0].sum(-1) == 2).all()
    sunk, *_ = BlockMap(block=8, topk=1 / 8, sim_threshold=0.9, sink=True).choose(
        alike[None, None], alike[None, None], (8, 8)
    )
    assert sunk[..., 0].all()


@pytest.mark.parametrize("grid", [(1, 1), (8, 8), (16, 16)], ids=str)
def test_hilbert_curve_has_no_jumps(grid):
    order = hilbert_order(grid)
    assert torch.equal(order.sort().values, torch.arange(grid[0] * grid[1]))
    steps = (order // grid[1]).diff().abs() + (order % grid[1]).diff().abs()
    assert (steps == 1).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"topk": 1.5}, r"topk must be from 0 to 1, got 1\.5"),
        ({"cdf": -0.1}, r"cdf must be from 0 to 1, got -0\.1"),
        ({"topk": 0.5, "cdf": 0.9}, r"topk and cdf exclude each other, got topk=0\.5 and cdf=0\.9"),
        ({"topk": (0.5, 0.5)}, r"topk must be one number or 3, one for each head, got \(0\.5, 0\.5\)"),
        ({"block": (0, 3)}, r"block must be .* at least 1, got \(0, 3\)"),
        ({"order": "spiral"}, "order must be one of raster, hilbert, got 'spiral'"),
        ({"num_heads": 5}, "num_heads must divide dim, got dim=24, num_heads=5"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        SpargeAttention(24, **{"num_heads": 3, **arguments})


def test_only_sparse_attention_has_routes():
    with pytest.raises(ValueError, match="only sparse attention has routes"):
        SoftmaxAttention(24, num_heads=3).routes(torch.randn(1, 2, 2, 24))
