"""RAVLT against the authors' network, and the format of their weights."""

import pytest
import timm
import torch

import visionattn  # noqa: F401
from visionattn.models.families.va_ravlt import RAVLT, checkpoint_filter_fn
from visionattn.testing.fixtures import authors_file, load, normal, relative_error

PARAMS = {"tiny": 14_897_768, "small": 25_590_000, "base": 48_240_000, "large": 95_240_000}


def test_golden(tmp_path):
    golden = load("ravlt_t_eval")
    overlay = authors_file(golden, tmp_path / "author.pth")
    model = timm.create_model("va_ravlt_tiny", pretrained=True, pretrained_cfg_overlay=overlay).eval()
    with torch.inference_mode():
        features, stages = model.forward_intermediates(golden.input)
        assert relative_error(model.forward_head(features), golden.arrays["out_0"]) < 1e-4
    for index, stage in enumerate(stages):
        assert relative_error(stage.mean((2, 3)), golden.arrays[f"feat_{index}"]) < 1e-4


@pytest.mark.parametrize("form", ["linear", "softmax"])
def test_golden_blocks(form):
    golden = load(f"rala_{form}_block_module_1x48x17x9_eval")
    model = RAVLT((48,), (1,), (3,), attn_type=form[0].upper(), layer_scales=(1.0,), num_classes=0).eval()
    state = {f"layers.0.blocks.0.{key}": value for key, value in golden.state_dict.items()}
    block = model.stages[0].blocks[0]
    prefix = "stages.0.blocks.0."
    block.load_state_dict({k.removeprefix(prefix): v for k, v in checkpoint_filter_fn(state, model).items()})
    x = golden.input.requires_grad_()
    out = block(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    (out * normal(golden.meta["input_seed"] + 1, out.shape)).sum().backward()
    assert relative_error(out, golden.arrays["out_0"]) < 1e-5
    assert relative_error(x.grad, golden.arrays["grad_x"]) < 1e-5


@pytest.mark.parametrize(("size", "params"), PARAMS.items())
def test_published_sizes(size, params):
    model = timm.create_model(f"va_ravlt_{size}", device="meta")
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(params, abs=0 if size == "tiny" else 5_000)
    scale = model.stages[-1].blocks[0].mlp.gamma
    assert scale.shape == (model.feature_info[-1]["num_chs"],)


def test_stages_are_of_the_kind_that_their_letter_says():
    model = timm.create_model("va_ravlt_tiny", device="meta", attn_type="LSLL")
    assert [stage.blocks[0].attn.fn.softmax for stage in model.stages] == [False, True, False, False]
    default = timm.create_model("va_ravlt_tiny", device="meta")
    assert [stage.blocks[0].attn.fn.softmax for stage in default.stages] == [False, False, True, True]
    for wrong in ("LL", "LLSX"):
        with pytest.raises(ValueError, match=f"attn_type must name L or S for each of 4 stages, got '{wrong}'"):
            timm.create_model("va_ravlt_tiny", device="meta", attn_type=wrong)
    with pytest.raises(ValueError, match="layer_scales must hold one number for each of 4 stages"):
        timm.create_model("va_ravlt_tiny", device="meta", layer_scales=(1.0,))


def test_weights_that_cannot_be_placed_are_named(tmp_path):
    golden = load("ravlt_t_eval")
    state = golden.state_dict
    state["layers.0.blocks.0.attn.other.weight"] = state.pop("layers.0.blocks.0.attn.lepe.weight")
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match=r"missing: stages\.0\.blocks\.0\.attn\.fn\.lepe\.weight.*other\.weight"):
        timm.create_model("va_ravlt_tiny", pretrained=True, pretrained_cfg_overlay={"file": str(tmp_path / "odd.pth")})
