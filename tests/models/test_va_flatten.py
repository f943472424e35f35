"""FLatten's five hosts against the official networks and their formats."""

import pytest
import timm
import torch

import visionattn  # noqa: F401
from visionattn.mixers import CrossShapedWindowAttention, FocusedLinearAttention, WindowAttention
from visionattn.testing.fixtures import authors_file, load, relative_error

# The official PVT holds a norm of 1,024 parameters that it never applies.
PARAMS = {
    "deit_tiny": 6_190_888,
    "pvt_tiny": 12_150_504 - 1024,
    "pvt_small": 21_670_248 - 1024,
    "pvt_medium": 37_242_216 - 1024,
    "pvt_large": 50_649_192 - 1024,
    "pvtv2_b0": 3_594_824,
    "pvtv2_b1": 12_931_240,
    "pvtv2_b2": 22_548_264,
    "swin_tiny": 29_192_384,
    "swin_small": 50_510_288,
    "swin_base": 88_972_488,
    "swin_base_384": 91_433_928,
    "cswin_tiny": 21_201_768,
    "cswin_small": 35_451_752,
    "cswin_base": 74_867_032,
    "cswin_base_384": 78_369_112,
}


@pytest.mark.parametrize(
    ("name", "fixture"),
    [
        ("va_flatten_swin_tiny", "flatten_swin_t_eval"),
        ("va_flatten_pvt_tiny", "flatten_pvt_t_eval"),
        ("va_flatten_pvtv2_b0", "flatten_pvtv2_b0_eval"),
        ("va_flatten_cswin_tiny", "flatten_cswin_t_eval"),
        ("va_flatten_deit_tiny", "flatten_deit_t_gap_eval"),  # a reconstruction: consistency, no parity
    ],
)
def test_golden(name, fixture, tmp_path):
    golden = load(fixture)
    overlay = authors_file(golden, tmp_path / "author.pth")
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay).eval()
    with torch.inference_mode():
        features, stages = model.forward_intermediates(golden.input)
        assert relative_error(model.forward_head(features), golden.arrays["out_0"]) < 1e-4
    means = [golden.arrays[key] for key in sorted(golden.arrays) if key.startswith("feat_")]
    assert means or "deit" in name
    for stage, mean in zip(stages, means, strict=False):
        assert relative_error(stage.mean((2, 3)), mean) < 1e-4


@pytest.mark.parametrize(("variant", "params"), PARAMS.items())
def test_published_sizes(variant, params):
    model = timm.create_model(f"va_flatten_{variant}", device="meta")
    assert sum(p.numel() for p in model.parameters()) == params


def test_stages_are_of_the_kind_that_their_letter_says():
    model = timm.create_model("va_flatten_swin_tiny", device="meta", attn_type="LM1M3S")
    kinds = [[type(block.attn.fn) for block in stage.blocks] for stage in model.stages]
    linear, windows = FocusedLinearAttention, WindowAttention
    assert kinds == [[linear] * 2, [linear, windows], [linear] * 3 + [windows] * 3, [windows] * 2]
    model = timm.create_model("va_flatten_cswin_tiny", device="meta", attn_type="SSSS")
    assert {type(block.attn.fn) for stage in model.stages for block in stage.blocks} == {CrossShapedWindowAttention}
    for wrong in ("LLS", "LLXS", "LLSM"):
        with pytest.raises(ValueError, match=f"attn_type must name L, S or M and a number .* 4 stages, got '{wrong}'"):
            timm.create_model("va_flatten_swin_tiny", device="meta", attn_type=wrong)
