"""Twins' two attentions against the official code's recorded outputs and gradients, and against timm's."""

import pytest
import torch
from timm.models.twins import GlobalSubSampleAttn, LocallyGroupedAttn
from torch import nn

from visionattn.mixers import GlobalSubsampledAttention, LocallyGroupedAttention
from visionattn.reference.window import window_attention as naive_attention
from visionattn.testing.fixtures import check_module, load, relative_error

MASKS = {"lsa": ("none", "exact", "official"), "lsa_mask": ("official",), "lsa_padding": ("none",)}
LSA = [
    ("lsa", "14x14"),
    *[(kind, size) for kind in ("lsa_mask", "lsa_padding") for size in ("14x14", "14x10", "16x10")],
]


class Tokens(nn.Module):
    """The official interface, `(B, N, C)`, around a mixer."""

    def __init__(self, mixer, height, width):
        super().__init__()
        self.mixer, self.size = mixer, (height, width)

    def forward(self, x):
        return self.mixer(x.unflatten(1, self.size)).flatten(1, 2)


@pytest.mark.parametrize(("kind", "size", "mask"), [(*case, mask) for case in LSA for mask in MASKS[case[0]]])
def test_golden_lsa(kind, size, mask):
    golden = load(f"twins_{kind}_module_2x{size}x64_eval")
    mixer = LocallyGroupedAttention(64, num_heads=2, window_size=7, pad_mask=mask)
    mixer.load_state_dict(golden.state_dict)
    check_module(Tokens(mixer, *map(int, size.split("x"))), golden, 1e-5)


def test_exact_and_official_masks_agree_where_both_sides_are_padded():
    golden = load("twins_lsa_mask_module_2x16x10x64_eval")
    mixer = LocallyGroupedAttention(64, num_heads=2, window_size=7, pad_mask="exact")
    mixer.load_state_dict(golden.state_dict)
    check_module(Tokens(mixer, 16, 10), golden, 1e-5)


@pytest.mark.parametrize("name", ["1x7x9x64_sr1", "2x14x14x64_sr2", "2x16x24x64_sr8"])
def test_golden_gsa(name):
    golden = load(f"twins_gsa_module_{name}_eval")
    constructor = golden.meta["constructor"]
    mixer = GlobalSubsampledAttention(constructor["dim"], num_heads=constructor["heads"], sr_ratio=constructor["sr"])
    mixer.load_state_dict(golden.state_dict)
    check_module(Tokens(mixer, constructor["H"], constructor["W"]), golden, 1e-5)


@pytest.mark.parametrize("mask", ["none", "exact", "official"])
@pytest.mark.parametrize("size", [(3, 4), (6, 4), (5, 7), (1, 1)], ids=str)
def test_lsa_agrees_with_the_naive_formulation(size, mask):
    torch.manual_seed(0)
    mixer = LocallyGroupedAttention(8, num_heads=2, window_size=(3, 4), pad_mask=mask).double()
    x = torch.randn(2, *size, 8, dtype=torch.float64, requires_grad=True)
    masked = mask == "exact" or (mask == "official" and size[0] % 3 > 0 and size[1] % 4 > 0)
    expected = mixer.proj(naive_attention(x, mixer.qkv, 2, (3, 4), mask_padding=masked))
    actual = mixer(x)
    torch.testing.assert_close(actual, expected)
    wanted = (x, *mixer.parameters())
    expected, actual = (torch.autograd.grad(out.square().sum(), wanted) for out in (expected, actual))
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("size", [(14, 14), (13, 9), (3, 20)], ids=str)
def test_agrees_with_timm(size):
    torch.manual_seed(0)
    pairs = [
        (LocallyGroupedAttn(24, 3, ws=7), LocallyGroupedAttention(24, num_heads=3, pad_mask="none")),
        (GlobalSubSampleAttn(24, 3, sr_ratio=3), GlobalSubsampledAttention(24, num_heads=3, sr_ratio=3)),
        (GlobalSubSampleAttn(24, 3), GlobalSubsampledAttention(24, num_heads=3)),
    ]
    for timm, mixer in pairs:
        mixer.load_state_dict(timm.state_dict())
        x = torch.randn(2, *size, 24)
        assert relative_error(mixer(x).flatten(1, 2), timm(x.flatten(1, 2), size)) < 1e-5


def test_edges_of_the_summary():
    torch.manual_seed(0)
    crop = GlobalSubsampledAttention(8, num_heads=2, sr_ratio=4)
    pad = GlobalSubsampledAttention(8, num_heads=2, sr_ratio=4, remainder="pad")
    pad.load_state_dict(crop.state_dict())
    x = torch.randn(2, 9, 10, 8)
    assert crop.summary(x).shape == (2, 2, 2, 8) and pad.summary(x).shape == (2, 3, 3, 8)
    torch.testing.assert_close(crop.summary(x), pad.summary(x)[:, :2, :2])
    torch.testing.assert_close(crop(x[:, :8, :8]), pad(x[:, :8, :8]))
    small = x[:, :3, :6]
    assert crop.summary(small).shape == (2, 1, 1, 8) and pad.summary(small).shape == (2, 1, 2, 8)
    filled = torch.zeros(2, 4, 6, 8)
    filled[:, :3] = small
    torch.testing.assert_close(crop.summary(small), crop.summary(filled))
    assert crop(small).shape == small.shape


@pytest.mark.parametrize(
    ("build", "arguments", "message"),
    [
        (LocallyGroupedAttention, {"num_heads": 3}, "num_heads must divide dim, got dim=8, num_heads=3"),
        (LocallyGroupedAttention, {"pad_mask": "some"}, "pad_mask must be one of none, exact, official, got 'some'"),
        (GlobalSubsampledAttention, {"num_heads": 0}, "num_heads=0"),
        (GlobalSubsampledAttention, {"sr_ratio": 0}, "sr_ratio must be at least 1, got 0"),
        (GlobalSubsampledAttention, {"remainder": "wrap"}, "remainder must be one of crop, pad, got 'wrap'"),
    ],
)
def test_bad_arguments(build, arguments, message):
    with pytest.raises(ValueError, match=message):
        build(8, **{"num_heads": 2} | arguments)
