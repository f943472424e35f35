"""Convolution of NHWC maps against PyTorch's own."""

import pytest
import torch
from torch.nn import functional as F

from visionattn.ops import nhwc_conv


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((6, 4, 1, 1), {}),
        ((6, 4, 1, 1), {"stride": 2}),
        ((6, 4, 2, 2), {"stride": 2}),
        ((6, 4, 3, 3), {"stride": 3}),
        ((6, 4, 3, 3), {"stride": 3, "padding": 1}),
        ((6, 4, 2, 3), {"stride": 2}),
        ((8, 2, 2, 2), {"stride": 2, "groups": 2}),
        ((4, 1, 3, 3), {"padding": 1, "groups": 4}),
    ],
)
def test_is_conv2d(shape, options, bias):
    torch.manual_seed(0)
    x = torch.randn(2, 7, 9, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    inputs = [x, weight] + [torch.randn(shape[0], dtype=torch.float64, requires_grad=True)] * bias
    expected = F.conv2d(x.permute(0, 3, 1, 2), *inputs[1:], **options).permute(0, 2, 3, 1)
    actual = nhwc_conv(*inputs, **options)
    torch.testing.assert_close(actual, expected)
    grads = [torch.autograd.grad(out.sin().sum(), inputs) for out in (actual, expected)]
    torch.testing.assert_close(*grads)
