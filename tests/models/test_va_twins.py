"""Twins against the authors' network and timm's, and the formats of their weights."""

import pytest
import timm
import torch

import visionattn  # noqa: F401
from visionattn.models.families.va_twins import checkpoint_filter_fn
from visionattn.models.layers import PositionConv
from visionattn.profiling.operator_counter import saved_bytes
from visionattn.testing.fixtures import authors_file, check_module, load, relative_error

PARAMS = {
    "pcpvt_small": 24_106_216,
    "pcpvt_base": 43_828_456,
    "pcpvt_large": 60_989_672,
    "svt_small": 24_060_776,
    "svt_base": 56_070_952,
    "svt_large": 99_271_400,
}


@pytest.mark.parametrize(
    ("name", "fixture"),
    [("va_twins_svt_small", "twins_alt_gvt_small_eval"), ("va_twins_pcpvt_small", "twins_pcpvt_small_eval")],
)
def test_golden(name, fixture, tmp_path):
    golden = load(fixture)
    overlay = authors_file(golden, tmp_path / "author.pth")
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay).eval()
    with torch.inference_mode():
        features, stages = model.forward_intermediates(golden.input)
        assert relative_error(model.forward_head(features), golden.arrays["out_0"]) < 1e-4
    for index, stage in enumerate(stages):
        assert relative_error(stage.mean((2, 3)), golden.arrays[f"feat_{index}"]) < 1e-4


def test_dense_variant_masks_as_the_authors_do(tmp_path):
    golden = load("twins_alt_gvt_small_dense_pad_eval")
    overlay = authors_file(golden, tmp_path / "author.pth")
    arguments = {"pretrained": True, "pretrained_cfg_overlay": overlay, "stage_norm": True, "pad_mask": "official"}
    features = timm.create_model("va_twins_svt_small", features_only=True, **arguments).eval()
    with torch.inference_mode():
        maps = features(golden.input)
    for index, x in enumerate(maps):
        assert relative_error(x.mean((2, 3)), golden.arrays[f"out_{index}"]) < 1e-4


def test_positional_encoding():
    golden = load("twins_peg_module_1x9x13x48_eval")
    conv = PositionConv(48)
    conv.load_state_dict({key.removeprefix("proj.0."): value for key, value in golden.state_dict.items()})

    class OnTokens(torch.nn.Module):
        def forward(self, x):
            return conv(x.unflatten(1, (9, 13))).flatten(1, 2)

    check_module(OnTokens(), golden, 1e-5)


@pytest.mark.parametrize(("variant", "params"), PARAMS.items())
def test_published_sizes(variant, params):
    model = timm.create_model(f"va_twins_{variant}", device="meta")
    assert sum(p.numel() for p in model.parameters()) == params
    assert model.no_weight_decay() == {
        f"stages.{i}.blocks.0.position.{p}" for i in range(4) for p in ("weight", "bias")
    }


@pytest.mark.parametrize("variant", [pytest.param(v, marks=[] if "small" in v else pytest.mark.slow) for v in PARAMS])
def test_equals_timm(variant):
    torch.manual_seed(0)
    theirs = timm.create_model(f"twins_{variant}").eval()
    ours = timm.create_model(f"va_twins_{variant}").eval()
    ours.load_state_dict(checkpoint_filter_fn(theirs.state_dict(), ours), assign=True)
    x = torch.randn(2, 3, 96, 160)
    with torch.inference_mode():
        assert relative_error(ours(x), theirs(x)) < 1e-5


def test_unknown_policies_are_refused():
    with pytest.raises(ValueError, match="pad_mask must be one of none, exact, official, got 'some'"):
        timm.create_model("va_twins_svt_small", device="meta", pad_mask="some")
    with pytest.raises(ValueError, match="remainder must be one of crop, pad, got 'wrap'"):
        timm.create_model("va_twins_svt_small", device="meta", remainder="wrap")


@pytest.mark.parametrize(("name", "share"), [("twins_pcpvt_small", 1.0), ("twins_svt_small", 0.87)])
def test_saves_no_more_than_timms_for_the_backward_pass(name, share):
    x = torch.randn(1, 3, 64, 64)
    ours, theirs = (saved_bytes(timm.create_model(prefix + name, drop_path_rate=0.2), x) for prefix in ("va_", ""))
    assert ours <= share * theirs
