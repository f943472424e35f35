"""Pictures of fewer pixels than a network's strides: README promises any input size."""

import pytest
import timm
import torch
from torch.nn import functional as F

from visionattn.models.layers import PatchConv

# A network of each stem and each downsampling, at its published sizes; the other sizes of a family have the same.
NETWORKS = (
    *("va_balanced12_bmta", "va_boat_cswin_tiny", "va_boat_swin_tiny", "va_davit_tiny", "va_flatten_cswin_tiny"),
    *("va_flatten_deit_tiny", "va_flatten_pvt_tiny", "va_flatten_pvtv2_b0", "va_flatten_swin_tiny", "va_lkca_vit_mini"),
    *("va_mobilenetv1_050_ulsam", "va_mobilenetv2_050_coord", "va_resnet10n_cbam", "va_resnet18_pkcam"),
    *("va_stm_pvt_nano", "va_twins_pcpvt_small", "va_twins_svt_small", "va_vit_softmax_nano"),
)


@pytest.mark.parametrize("name", NETWORKS)
def test_are_taken(name):
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=7).eval()
    for size in ((28, 28), (20, 12), (1, 1)):
        with torch.inference_mode():
            assert model(torch.zeros(2, 3, *size, device="meta")).shape == (2, 7), size


def test_give_numbers():
    torch.manual_seed(0)
    model = timm.create_model("va_twins_svt_small", depths=(1, 1, 1, 1)).eval()
    x = torch.randn(2, 3, 28, 28)
    with torch.inference_mode():
        both = model(x)
        assert both.isfinite().all() and not torch.equal(both[0], both[1])


@pytest.mark.parametrize(("kernel", "padding"), [(2, 0), (4, 0), (7, 2), (3, 1)])
@pytest.mark.parametrize("size", [(1, 1), (2, 5), (5, 2), (9, 9)], ids=str)
def test_maps_below_the_kernel_are_filled_up_with_zeros(kernel, padding, size):
    conv = PatchConv(3, 4, kernel_size=kernel, stride=2, padding=padding)
    x = torch.randn(2, *size, 3)
    missing = [max(kernel - 2 * padding - side, 0) for side in size]
    expected = conv.conv(F.pad(x, (0, 0, 0, missing[1], 0, missing[0])).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(conv(x), expected)
