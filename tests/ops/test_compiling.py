"""What operations do for `torch.compile` alone: the same values and gradients as in eager mode, ties included."""

from copy import deepcopy

import pytest
import torch

from visionattn.ops import (
    axis_pools,
    channel_moments,
    large_kernel_conv,
    max_first,
    plane_conv,
    project_apart,
    rank_augmented_attention,
    routed_attention,
    strip_conv,
    subspace_scores,
    toeplitz_matrix,
)
from visionattn.ops.pointwise_conv import pointwise_conv
from visionattn.ops.rank_augmented_attention import rotation_tables
from visionattn.ops.token_products import token_products
from visionattn.plugins import (
    CBAM,
    ULSAM,
    CAMAttention,
    CoordinateAttention,
    EfficientAttention,
    EfficientLocalAttention,
    PixelAttention,
    TripletAttention,
)
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
    # Gathered from channels that lie innermost, gates would slow down loops over the map.
    assert results(compiled(strip_conv))[0].is_contiguous()


PLUGINS = [
    CAMAttention,
    CBAM,
    CoordinateAttention,
    EfficientAttention,
    EfficientLocalAttention,
    PixelAttention,
    TripletAttention,
    ULSAM,
]


@pytest.mark.parametrize("plugin", PLUGINS)
def test_training_steps_of_plugins(plugin):
    """Outputs, gradients and running statistics of one step."""
    ours = perturbed(plugin(32)).train()
    other = deepcopy(ours)
    x = levels(2, 32, 9, 8, dtype=torch.float32)
    for actual, expected in zip(gradients(compiled(other), x), gradients(ours, x), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, msg=name)


@pytest.mark.parametrize("plugin", PLUGINS)
def test_large_maps_as_nhwc(plugin):
    """The layout stays; outputs and gradients are those of eager mode."""
    torch.manual_seed(0)  # rare weights have maxima so close that rounding decides between them
    ours = perturbed(plugin(64)).train()
    x = levels(2, 64, 33, 32, dtype=torch.float32)
    expected = gradients(ours, x)
    actual = gradients(compiled(ours), x.contiguous(memory_format=torch.channels_last))
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", [(2, 1, 11, 13), (4, 1, 3, 3), (1, 1, 27, 27)], ids=str)
def test_large_kernels(kernel):
    inputs = levels(2, 9, 30, 4), levels(*kernel)

    def convolve(x, kernel):
        return large_kernel_conv(x, kernel, backend="conv")

    for actual, expected in zip(gradients(compiled(convolve), *inputs), gradients(convolve, *inputs), strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("kernel", [(2, 1, 5, 7), (1, 1, 3, 3), (3, 1, 11, 1)], ids=str)
def test_convolutions_as_matrices_in_use(kernel):
    inputs = levels(*kernel)
    for grid in ((3, 4), (1, 5)):
        with torch.no_grad():
            actual = compiled(toeplitz_matrix)(inputs, *grid)
        assert torch.equal(actual, toeplitz_matrix(inputs, *grid))


def test_rank_augmented_attention():
    cos, sin = rotation_tables((3, 4), 8, like=levels(1))
    inputs = levels(3, 12, 16), levels(3, 12, 16) / 2, levels(3, 12, 16)

    def attend(q, k, v):
        return rank_augmented_attention(q, k, v, cos, sin, num_heads=2)

    for actual, expected in zip(gradients(compiled(attend), *inputs), gradients(attend, *inputs), strict=True):
        torch.testing.assert_close(actual, expected)
    assert called(attend, *inputs) == ["visionattn.rank_augmented_attention_by_hand.default"]


def test_routed_attention():
    inputs = (levels(2, 8, 12, 24),)
    table = torch.randint(24, (2, 24, 2), generator=torch.Generator().manual_seed(0))

    def attend(qkv):
        return routed_attention(qkv, table, num_heads=2, region=(2, 2), scale=0.5)

    for actual, expected in zip(gradients(compiled(attend), *inputs), gradients(attend, *inputs), strict=True):
        torch.testing.assert_close(actual, expected)
    assert called(attend, *inputs) == ["visionattn.pick_rows_by_hand.default"] * 2


def test_queries_keys_and_values_are_projected_apart():
    layer, x = torch.nn.Linear(6, 12, dtype=torch.float64), levels(2, 5, 6)
    layers = []

    def backend(graph, _):
        layers.extend(node.name for node in graph.graph.nodes if "linear" in str(node.target))
        return graph.forward

    parts = torch.compile(lambda x: project_apart(layer, x), fullgraph=True, backend=backend)(x)
    assert len(layers) == 3
    for part, expected in zip(parts, layer(x).chunk(3, 2), strict=True):
        torch.testing.assert_close(part, expected)


def test_products_of_tokens():
    x = levels(2, 12, 5)
    for actual, expected in zip(gradients(compiled(token_products), x), gradients(token_products, x), strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "NHWC"])
def test_pointwise_convolutions_keep_the_layout(layout):
    x = levels(2, 64, 33, 32).contiguous(memory_format=layout)
    inputs = x, levels(5, 64, 1, 1), levels(5)
    actual, expected = gradients(compiled(pointwise_conv), *inputs), gradients(pointwise_conv, *inputs)
    assert actual[0].is_contiguous(memory_format=layout)
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
def test_operators_by_hand_under_autocast(given):
    """An operator of ours gets what it is given: half precision of autocast is chosen before."""
    strips, tokens = levels(2, 8, 9, dtype=given), levels(2, 9, 30, 4, dtype=given)
    conv, kernel = torch.nn.Conv1d(8, 8, 5, padding=2, groups=4), levels(4, 1, 11, 13, dtype=torch.float32)

    def functions(strips, tokens):
        return strip_conv(strips, conv), large_kernel_conv(tokens, kernel, backend="conv")

    with torch.autocast("cpu", torch.bfloat16):
        actual, expected = compiled(functions)(strips, tokens), functions(strips, tokens)
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)


def called(function, *inputs):
    """The names of our operators in the graph."""
    names = []

    def backend(graph, _):
        names.extend(str(node.target) for node in graph.graph.nodes if "visionattn" in str(node.target))
        return graph.forward

    torch.compile(function, fullgraph=True, backend=backend, dynamic=False)(*inputs)
    return names


def test_scores_of_subspaces_stay_one_operator():
    inputs = levels(2, 6, 9, 7), levels(6), levels(6), levels(2, 3)
    assert called(subspace_scores, *inputs) == ["visionattn.subspace_scores_by_hand.default"]
    program = torch.export.export(_Scores(), inputs)
    assert not any("visionattn" in str(node.target) for node in program.graph.nodes)


class _Scores(torch.nn.Module):
    def forward(self, *inputs):
        return subspace_scores(*inputs)


@pytest.mark.parametrize(
    ("shape", "layout", "copies"),
    [
        ((2, 64, 33, 32), torch.channels_last, 2),
        ((2, 64, 33, 32), torch.contiguous_format, 0),
        ((2, 64, 8, 8), torch.channels_last, 0),
    ],
    ids=["large NHWC", "NCHW", "small"],
)
def test_pools_of_large_maps_as_nhwc_are_stored_so(shape, layout, copies):
    x = levels(*shape).contiguous(memory_format=layout)
    pools = (("max", 2), ("mean", 3), ("max", 1))
    assert called(lambda x: axis_pools(x, pools), x) == ["visionattn.stored.default"] * copies


def test_operators_of_compiled_graphs():
    """Their shapes, strides and gradients are those that compilers are told."""
    inputs = levels(2, 6, 9, 7), levels(6).abs() + 0.5, levels(6) / 4, levels(2, 3) + 0.25
    for layout in (torch.contiguous_format, torch.channels_last):
        x, *rest = (part.detach().clone().requires_grad_() for part in inputs)
        x = x.detach().contiguous(memory_format=layout).requires_grad_()
        torch.library.opcheck(torch.ops.visionattn.subspace_scores_by_hand, (x, *rest))
        torch.library.opcheck(torch.ops.visionattn.stored, (x, layout == torch.channels_last))
    strips, weight = levels(2, 6, 9).requires_grad_(), levels(4, 3, 5).requires_grad_()
    torch.library.opcheck(torch.ops.visionattn.strip_conv_by_hand, (strips, weight))
    tokens, kernel = levels(2, 9, 8, 4).requires_grad_(), levels(4, 1, 11, 11).requires_grad_()
    torch.library.opcheck(torch.ops.visionattn.depthwise_conv_by_hand, (tokens, kernel))
    torch.library.opcheck(torch.ops.visionattn.pick_rows_by_hand, (strips.detach()[0], torch.tensor([5, 0, 0, 2])))
    qkv = [levels(2, 12, 16).requires_grad_() for _ in range(3)]
    tables = rotation_tables((3, 4), 8, like=qkv[0])
    torch.library.opcheck(torch.ops.visionattn.rank_augmented_attention_by_hand, (*qkv, *tables))
