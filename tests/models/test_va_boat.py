"""BOAT's two hosts against the official networks.

In double precision: in float32 rounding alone moves some position into another cluster, in the official code as well.
"""

import pytest
import timm
import torch

import visionattn  # noqa: F401
from visionattn.testing.fixtures import authors_file, load, relative_error

PARAMS = {
    "swin_tiny": 30_265_186,
    "swin_small": 55_158_898,
    "swin_base": 97_612_960,
    "cswin_tiny": 26_390_952,
    "cswin_small": 40_112_488,
    "cswin_base": 89_628_712,
}
NARROW = {"dims": (16, 32, 64, 128), "depths": (1, 1, 2, 1), "num_heads": (2, 2, 4, 8)}


@pytest.mark.parametrize(("variant", "arguments"), [("swin", {}), ("cswin", {"legacy": True})])
def test_golden(variant, arguments, tmp_path):
    golden = load(f"boat_{variant}_tiny_eval")
    overlay = authors_file(golden, tmp_path / "author.pth")
    name = f"va_boat_{variant}_tiny"
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **arguments).eval().double()
    with torch.inference_mode():
        features, stages = model.forward_intermediates(golden.input.double())
        assert relative_error(model.forward_head(features), golden.arrays["out_0"]) < 1e-5
    for index, stage in enumerate(stages):
        assert relative_error(stage.mean((2, 3)), golden.arrays[f"feat_{index}"]) < 1e-5


@pytest.mark.parametrize(("variant", "params"), PARAMS.items())
def test_published_sizes(variant, params):
    assert sum(p.numel() for p in timm.create_model(f"va_boat_{variant}", device="meta").parameters()) == params


def shuffled_batch_gives_shuffled_outputs(model):
    x = torch.randn(4, 3, 224, 224)
    order = [2, 0, 3, 1]
    with torch.inference_mode():
        return torch.equal(model(x)[order], model(x[order]))


@pytest.mark.parametrize("variant", ["swin", "cswin"])
def test_images_of_a_batch_do_not_see_each_other(variant):
    torch.manual_seed(0)
    assert shuffled_batch_gives_shuffled_outputs(timm.create_model(f"va_boat_{variant}_tiny", **NARROW).eval())


def test_the_published_cswin_lets_them():
    torch.manual_seed(0)
    model = timm.create_model("va_boat_cswin_tiny", legacy=True, **NARROW).eval()
    assert not shuffled_batch_gives_shuffled_outputs(model)
    with pytest.raises(ValueError, match="even"), torch.inference_mode():
        model(torch.randn(3, 3, 224, 224))
