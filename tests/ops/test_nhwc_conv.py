"""Convolution of NHWC maps against PyTorch's own."""

import pytest
import torch
from torch.nn import functional as F

from visionattn.ops import nhwc_conv, nhwc_upconv


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


@pytest.mark.parametrize("size", [(1, 1), (9, 8)], ids=["few positions", "many"])
def test_patches_of_few_positions(size):
    """Few positions are laid out as the weight lies, many as they lie themselves."""
    torch.manual_seed(0)
    x = torch.randn(1, 2 * size[0], 2 * size[1], 16, dtype=torch.float64, requires_grad=True)
    down, up = (torch.randn(16, 16, 2, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    results = []
    for convolve in (
        lambda x: nhwc_upconv(nhwc_conv(x, down, stride=2).sin(), up),
        lambda x: F.conv_transpose2d(F.conv2d(x.permute(0, 3, 1, 2), down, stride=2).sin(), up, stride=2).permute(
            0, 2, 3, 1
        ),
    ):
        out = convolve(x)
        results.append((out, *torch.autograd.grad(out.sin().sum(), (x, down, up))))
    for pair in zip(*results, strict=True):
        torch.testing.assert_close(*pair)


def test_transposed_patches_of_other_shapes():
    torch.manual_seed(0)
    for shape in ((4, 6, 3, 3), (4, 2, 2, 3)):
        x, weight = torch.randn(2, 5, 3, 4), torch.randn(shape)
        expected = F.conv_transpose2d(x.permute(0, 3, 1, 2), weight, stride=shape[2:]).permute(0, 2, 3, 1)
        torch.testing.assert_close(nhwc_upconv(x, weight), expected, rtol=1e-5, atol=1e-5)
