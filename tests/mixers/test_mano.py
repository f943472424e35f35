"""Multipole attention against recorded runs and level by level."""

import pytest
import torch
from torch import nn

from visionattn.mixers import MultipoleAttention
from visionattn.profiling.operator_counter import saved_bytes
from visionattn.reference.mano import naive_of
from visionattn.testing.fixtures import check_module, load, relative_error


@pytest.mark.parametrize("name", ["2x8x8x32", "avgpool_1x8x16x48", "overlap_1x8x8x32"])
def test_golden(name):
    golden = load(f"mano_multipole_{name}_eval")
    official = golden.meta["constructor"]
    mixer = MultipoleAttention(
        official["dim"],
        official["heads"],
        head_dim=official["dim_head"],
        window_size=official["window"],
        levels=official["levels"],
        down=official["downsampling"],
        up=official["upsampling"],
        rate=official["sampling_rate"],
        window_stride=official["window_stride"],
    )
    mixer.load_state_dict(mixer.to_native(golden.state_dict))
    check_module(mixer, golden, 1e-5)


VARIANTS = {
    "rate 3": ((9, 18), {"rate": 3, "window_size": 3}),
    "pooled down": ((8, 16), {"down": "avg_pool", "num_heads": 1}),
    "pooled up": ((8, 8), {"up": "avg_pool", "head_dim": 5}),
    "large windows": ((16, 16), {"window_size": 4, "levels": 2}),
    "overlapping": ((8, 8), {"window_size": 4, "window_stride": 2, "levels": 2}),
    "overlapping by one": ((8, 12), {"window_stride": 1, "levels": 2}),
    "one level": ((6, 4), {"levels": 1}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_agrees_level_by_level(variant):
    torch.manual_seed(0)
    size, arguments = VARIANTS[variant]
    mixer = MultipoleAttention(12, **{"num_heads": 3, **arguments}).double()
    naive, results = naive_of(mixer), []
    x, weight = (torch.randn(2, *size, 12, dtype=torch.float64) for _ in range(2))
    for block in (naive, mixer):
        leaf = x.clone().requires_grad_()
        out = block(leaf)
        wanted = [leaf, *(p for p in block.parameters() if p.numel())]
        results.append([out, *torch.autograd.grad(out, wanted, weight, allow_unused=True)])
    for expected, actual in zip(*results, strict=True):
        assert (expected is None) == (actual is None)
        if expected is not None:
            torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def test_no_projection_with_one_head_as_wide_as_the_map():
    mixer = MultipoleAttention(12, 1, down="avg_pool")
    assert isinstance(mixer.proj, nn.Identity)
    assert {key.split(".")[0] for key in mixer.state_dict()} == {"norm", "attn_norm", "qkv", "up"}


@pytest.mark.parametrize(("stride", "up"), [(2, "conv"), (1, "conv"), (2, "avg_pool")])
def test_nothing_beyond_the_map_is_seen(stride, up):
    """On one level, a padded map gives what its tokens give each other alone."""
    torch.manual_seed(0)
    mixer = MultipoleAttention(8, 2, window_size=4, window_stride=4 if stride == 2 else 1, levels=1, up=up).double()
    x = torch.randn(1, 3, 2, 8, dtype=torch.float64)
    tokens = mixer.attn_norm(mixer.norm(x.flatten(1, 2)))
    q, k, v = mixer.qkv(tokens).unflatten(2, (3, 2, -1)).permute(2, 0, 3, 1, 4)
    out = mixer.proj(((q @ k.mT * 4**-0.5).softmax(-1) @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(mixer(x), out.view(1, 3, 2, 8))


def test_levels_follow_from_the_map():
    mixer = MultipoleAttention(8, 2)
    assert [mixer.count_levels(side, 32) for side in (1, 2, 3, 4, 16, 17)] == [1, 1, 2, 2, 4, 5]
    assert MultipoleAttention(8, 2, rate=3, window_size=3).count_levels(243, 243) == 5
    assert MultipoleAttention(8, 2, levels=2).count_levels(64, 64) == 2
    assert MultipoleAttention(8, 2, window_size=7).count_levels(56, 56) == 4


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (5, 7), (17, 9), (2, 3)], ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_takes_any_map(variant, size):
    torch.manual_seed(0)
    mixer = MultipoleAttention(12, **{"num_heads": 3, **VARIANTS[variant][1]})
    x = torch.randn(2, *size, 12, requires_grad=True)
    out = mixer(x)
    assert out.shape == x.shape and out.isfinite().all()
    out.square().sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("size", [(8, 16), (7, 5), (1, 3)], ids=str)
@pytest.mark.parametrize(
    "arguments", [{}, {"window_size": 4, "window_stride": 2}, {"rate": 3, "window_size": 3}, {"levels": 1}], ids=str
)
def test_weights_are_what_it_applies(size, arguments):
    """Without the norms, levels of means have the means of the values."""
    torch.manual_seed(0)
    mixer = MultipoleAttention(12, 3, down="avg_pool", up="avg_pool", **arguments).double()
    mixer.norm = mixer.attn_norm = nn.Identity()
    nn.init.zeros_(mixer.proj.bias)
    x = torch.randn(2, *size, 12, dtype=torch.float64)
    rows, values = mixer.weights(x), mixer.qkv(x)[..., 24:].flatten(1, 2).unflatten(2, (3, 4)).transpose(1, 2)
    torch.testing.assert_close(mixer(x), mixer.proj((rows @ values).transpose(1, 2).flatten(2)).view(x.shape))


def test_rows_of_weights_sum_up_to_the_factors_of_the_levels():
    rows = MultipoleAttention(8, 2).weights(torch.randn(2, 16, 16, 8))  # four levels: 1 + 1 / 3 + 1 / 6 + 1 / 6
    assert rows.shape == (2, 2, 256, 256)
    torch.testing.assert_close(rows.sum(-1), torch.full((2, 2, 256), 5 / 3))


def test_keeps_less_than_level_by_level():
    mixer = MultipoleAttention(32, 4)
    x = torch.randn(2, 32, 32, 32)
    assert saved_bytes(mixer, x) < saved_bytes(naive_of(mixer), x)


def test_dropout_acts_in_training_only():
    mixer = MultipoleAttention(8, 2, attn_drop=0.5, proj_drop=0.5)
    x = torch.randn(2, 8, 8, 8)
    assert not mixer(x).equal(mixer(x))
    mixer.eval()
    assert relative_error(mixer(x), mixer(x)) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": 3}, "num_heads must divide dim, got dim=8, num_heads=3"),
        ({"levels": 0}, "levels must be at least 1, got 0"),
        ({"rate": 1}, "rate must be at least 2, got 1"),
        ({"window_stride": 3}, "window_stride must be from 1 to window_size=2, got 3"),
        ({"down": "max"}, "down must be one of conv, avg_pool, got 'max'"),
        ({"up": "nearest"}, "up must be one of conv, avg_pool, got 'nearest'"),
        ({"head_dim": 3, "proj": False}, "proj=False needs heads as wide as dim=8 together, got 2 x 3"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        MultipoleAttention(8, **{"num_heads": 2, **arguments})
