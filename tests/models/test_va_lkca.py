"""Columnar transformers with LKCA: what can be said without official code."""

import timm
import torch

import visionattn  # noqa: F401


def test_a_network_built_for_one_size_takes_others():
    torch.manual_seed(0)
    model = timm.create_model("va_lkca_vit_mini").eval()
    with torch.inference_mode():
        for size in ((32, 32), (64, 64), (20, 36)):
            assert model(torch.randn(2, 3, *size)).shape == (2, 10)


def test_a_network_can_be_built_for_another_size():
    model = timm.create_model("va_lkca_vit_mini", device="meta", img_size=(64, 32), groups="shared")
    assert model.blocks[0].attn.fn.kernel.shape == (1, 1, 31, 15)
