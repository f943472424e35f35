"""MoH-ViT against the authors' network, and its losses of balance."""

import pytest
import timm
import torch

import visionattn  # noqa: F401
from visionattn.mixers import MixtureOfHeadAggregatedAttention, MixtureOfHeadAttention
from visionattn.ops.losses import collect_losses
from visionattn.testing.fixtures import authors_file, load, relative_error

PARAMS = {"small_80": 49_910_548, "small_75": 49_910_548, "base_75": 90_020_000, "base_50": 90_020_000}
NARROW = {"dims": (16, 32, 64, 128), "depths": (1, 1, 1, 1), "num_heads": (2, 2, 4, 8)}
HEADS = {"shared_heads": (2, 2, 1, 2), "routed_heads": (0, 0, 2, 4)}


def test_golden(tmp_path):
    golden = load("moh_vit_small_80_eval")
    overlay = authors_file(golden, tmp_path / "author.pth")
    model = timm.create_model("va_moh_vit_small_80", pretrained=True, pretrained_cfg_overlay=overlay).eval()
    with torch.inference_mode():
        features, stages = model.forward_intermediates(golden.input)
        assert relative_error(model.forward_head(features), golden.arrays["out_0"]) < 1e-3
    for index, stage in enumerate(stages):
        assert relative_error(stage.mean((2, 3)), golden.arrays[f"feat_{index}"]) < 1e-3


@pytest.mark.parametrize(("variant", "params"), PARAMS.items())
def test_published_sizes(variant, params):
    model = timm.create_model(f"va_moh_vit_{variant}", device="meta")
    exact = variant.startswith("small")
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(params, abs=0 if exact else 10_000)


@pytest.mark.parametrize(("variant", "share"), [("tiny_80", 0.8), ("small_75", 0.75), ("base_50", 0.58)])
def test_the_name_is_about_the_share_of_heads(variant, share):
    model = timm.create_model(f"va_moh_vit_{variant}", device="meta")
    mixers = [m for m in model.modules() if isinstance(m, MixtureOfHeadAttention | MixtureOfHeadAggregatedAttention)]
    shares = [(m.shared_heads + m.routed_heads) / m.num_heads for m in mixers]
    assert sum(shares) / len(shares) == pytest.approx(share, abs=0.06)
    assert [isinstance(stage.blocks[0].attn.fn, MixtureOfHeadAttention) for stage in model.stages] == [0, 0, 0, 1]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_layers_that_route_report_their_balance(checkpointing):
    torch.manual_seed(0)
    model = timm.create_model("va_moh_vit_small_80", **NARROW, **HEADS, num_classes=5)
    model.set_grad_checkpointing(checkpointing)
    with collect_losses() as losses:
        model.train()(torch.randn(2, 3, 64, 64))
    assert list(losses) == ["balance"] and len(losses["balance"]) == 2  # the last two stages
    # Even shares would cost the number of routed heads; nothing costs less than none.
    assert all(0 < value.item() < 0.01 * 8 for value in losses["balance"])
    with collect_losses() as losses:
        model.eval()(torch.randn(2, 3, 64, 64))
    assert losses == {}


def test_distances_are_in_units_of_the_nominal_size():
    torch.manual_seed(0)
    model = timm.create_model("va_moh_vit_small_80", **NARROW, **HEADS, num_classes=5, img_size=64).eval()
    assert [stage.blocks[0].attn.fn.grid_size for stage in model.stages] == [(16, 16), (8, 8), (4, 4), (2, 2)]
    assert model(torch.randn(1, 3, 45, 77)).shape == (1, 5)


def test_heads_are_needed_for_each_stage():
    with pytest.raises(ValueError, match=r"routed_heads must hold one number for each of 4 stages, got \(0, 6\)"):
        timm.create_model("va_moh_vit_small_80", device="meta", routed_heads=(0, 6))
