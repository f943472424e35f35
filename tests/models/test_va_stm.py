"""STM-Evaluation's unified architecture against the authors' networks."""

import pytest
import timm
import torch

import visionattn  # noqa: F401
from visionattn.testing.fixtures import authors_file, load, relative_error

FIXTURES = [
    ("convnext", "stm_convnext_micro_eval"),
    ("halonet", "stm_halonet_micro_eval"),
    ("halonet", "stm_halonet_micro_224x448_eval"),
    ("pvt", "stm_pvt_micro_eval"),
    ("swin", "stm_swin_micro_eval"),
    ("swin", "stm_swin_micro_224x448_eval"),
]
PARAMS = {
    "halonet_micro": 4.39,
    "halonet_tiny": 31.52,
    "halonet_small": 52.83,
    "halonet_base": 93.33,
    "convnext_micro": 4.44,
    "convnext_small": 54.39,
    "convnext_tiny": 31.91,
    "convnext_base": 95.87,
    "swin_micro": 4.38,
    "swin_tiny": 31.54,
    "swin_small": 52.87,
    "swin_base": 93.39,
    "pvt_micro": 4.45,
    "pvt_tiny": 31.16,
    "pvt_small": 50.89,
    "pvt_base": 91.57,
}


def check(model, golden):
    with torch.inference_mode():
        features, stages = model.forward_intermediates(golden.input)
        assert relative_error(model.forward_head(features), golden.arrays["out_0"]) < 1e-4
    for index, stage in enumerate(stages):
        assert relative_error(stage.mean((2, 3)), golden.arrays[f"feat_{index}"]) < 1e-4


@pytest.mark.parametrize(("mechanism", "fixture"), FIXTURES)
def test_golden(mechanism, fixture, tmp_path):
    golden = load(fixture)
    overlay = authors_file(golden, tmp_path / "author.pth")
    check(
        timm.create_model(f"va_stm_{mechanism}_micro", pretrained=True, pretrained_cfg_overlay=overlay).eval(), golden
    )


@pytest.mark.parametrize(("name", "millions"), PARAMS.items())
def test_published_sizes(name, millions):
    model = timm.create_model(f"va_stm_{name}", device="meta")
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.006)


def test_position_embedding_of_another_size_is_loaded_as_it_is(tmp_path):
    """A checkpoint for 160x224 pictures in a network built for them."""
    golden = load("stm_pvt_micro_160x224_eval")
    overlay = authors_file(golden, tmp_path / "author.pth")
    name = "va_stm_pvt_micro"
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, img_size=(160, 224)).eval()
    check(model, golden)
    with pytest.raises(ValueError, match=r"wrong shape: stages.0.blocks.0.position.weight is \(1, 40, 56, 32\)"):
        timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay)


def test_unknown_mixers_are_refused():
    with pytest.raises(ValueError, match=r"unknown mixer 'convnet'; there are: .*boat, "):
        timm.create_model("va_stm_pvt_nano", mixer="convnet")
