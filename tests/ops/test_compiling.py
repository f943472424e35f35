"""What operations do for `torch.compile` alone: the same values and gradients as in eager mode, ties included."""

from copy import deepcopy

import pytest
import torch

from visionattn.ops import channel_moments, max_first, plane_conv, strip_conv, subspace_scores
from visionattn.plugins import CBAM, ULSAM, CoordinateAttention, EfficientLocalAttention, TripletAttention
from visionattn.testing.contracts import perturbed


def levels(*shape, dtype=torch.float64):
    """Few levels: most maxima are ties."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype).mul(2).round()


def gradients(function, *inputs):
    inputs = [part.detach().clone().requires_grad_() for part in inputs]
    out = function(*inputs)
    results = out if isinstance(out, tuple) else (out,)
    total = sum((part * torch.linspace(-1, 1, part.numel(), dtype=part.dtype).view_as(part)).sum() for part in results)
    return [*results, *torch.autograd.grad(total, inputs)]


def compiled(function):
    return torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=False)


@pytest.mark.parametrize("dim", [1, 3, -2])
def test_maxima(dim):
    def function(x):
        return max_first(x, dim)

    x = levels(2, 5, 7, 6)
    for actual, expected in zip(gradients(compiled(function), x), gradients(function, x), strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("size", [(9, 7), (3, 5), (2, 6)], ids=str)
def test_scores_of_subspaces(size):
    inputs = levels(2, 6, *size), levels(6).abs() + 0.5, levels(6) / 4, levels(2, 3) + 0.25
    for actual, expected in zip(
        gradients(compiled(subspace_scores), *inputs), gradients(subspace_scores, *inputs), strict=True
    ):
        torch.testing.assert_close(actual, expected)


def test_moments_of_channels():
    x = levels(3, 4, 5, 6) + 100
    for actual, expected in zip(gradients(compiled(channel_moments), x), gradients(channel_moments, x), strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("size", [(5, 9), (9, 5), (1, 3), (140, 130)], ids=str)
def test_convolutions_of_planes(size):
    inputs = levels(2, 2, *size), levels(1, 2, 7, 7)
    for actual, expected in zip(gradients(compiled(plane_conv), *inputs), gradients(plane_conv, *inputs), strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize(
    ("conv", "size"),
    [
        (torch.nn.Conv1d(8, 4, 5, padding=2, groups=2), (3, 8, 6)),
        (torch.nn.Conv1d(8, 8, 3, padding=1, groups=8, bias=False), (3, 8, 1)),
        (torch.nn.Conv2d(8, 6, 1), (3, 8, 5, 1)),
        (torch.nn.Conv2d(8, 6, 1, bias=False), (3, 8, 1, 1)),
    ],
    ids=["groups", "depthwise", "pointwise", "one position"],
)
def test_convolutions_of_strips(conv, size):
    conv.double()

    def results(function):
        x = levels(*size).requires_grad_()
        out = function(x, conv)
        return [out, *torch.autograd.grad(out.sin().sum(), (x, *conv.parameters()))]

    expected = results(lambda x, conv: conv(x))
    for function in (compiled(strip_conv), strip_conv):
        for actual, plain in zip(results(function), expected, strict=True):
            torch.testing.assert_close(actual, plain)


@pytest.mark.parametrize("plugin", [CBAM, CoordinateAttention, EfficientLocalAttention, TripletAttention, ULSAM])
def test_training_steps_of_plugins(plugin):
    """Outputs, gradients and running statistics of one step."""
    ours = perturbed(plugin(32)).train()
    other = deepcopy(ours)
    x = levels(2, 32, 9, 8, dtype=torch.float32)
    for actual, expected in zip(gradients(compiled(other), x), gradients(ours, x), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, msg=name)
