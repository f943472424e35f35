"""Pools over axes, and gates that lack some, by kernels against their torch code in float64."""

import pytest
import torch
from kernels import (
    DTYPES,
    LAYOUTS,
    check,
    check_compiles,
    check_exports,
    check_operator,
    check_second_derivatives,
    laid_out,
    random,
)

from visionattn.ops import (
    axis_attention,
    axis_gate,
    axis_pools,
    cross_gate,
    explain,
    map_pools,
    nested_attention,
    nested_gate,
    score_gate,
    use_backend,
)
from visionattn.ops.triton import _axis_launch as launch
from visionattn.ops.triton._register import forget_sizes

LAYOUT = pytest.mark.parametrize("layout", LAYOUTS)
ODD = (2, 5, 7, 13)
# Sides of networks; channels that are no powers of two; a single channel, a single position.
SIZES = pytest.mark.parametrize("size", [(1, 6, 14, 7), (1, 1, 49, 3), (2, 3, 2, 61), (3, 67, 1, 1)], ids=str)
POOLS = [(kind, axis) for axis in (2, 3, 1) for kind in ("max", "mean")]
STRIPS = [("mean", 3), ("mean", 2)]


@pytest.fixture
def in_parts(monkeypatch):
    """Small tiles and short walks, so that many programs share each result."""
    monkeypatch.setattr(launch, "TILES", dict.fromkeys(launch.TILES, 256))
    monkeypatch.setattr(launch, "STEPS", 2)
    forget_sizes()
    yield
    forget_sizes()


def maps(size, layout, dtype=torch.float32, seed=0):
    """Numbers of few levels, so that many maxima are ties."""
    return laid_out(random(*size, seed=seed, levels=2, dtype=dtype), layout)


def gates(size, dtype, *broadcast_dims):
    shapes = [[1 if axis in axes else number for axis, number in enumerate(size)] for axes in broadcast_dims]
    return [random(*shape, seed=3 + i, dtype=dtype).sigmoid() for i, shape in enumerate(shapes)]


def spatial(pools):
    return (pools[:, :1].sin() + pools[:, 1:].square()).sigmoid()


def channels(mean, maximum):
    return (mean.tanh() * maximum).sigmoid()


def positive(mean):
    return mean.square() + 0.5


def of_map(x):
    return (x * x[:, :1]).mean(1, keepdim=True)


def of_pools(max_h, mean_h, max_w, mean_w, max_c, mean_c):
    """Gates of six pools, as triplet attention makes them."""
    yield (max_h + mean_h.square()).sigmoid().unsqueeze(2)
    yield (max_w.square() + mean_w).sigmoid().unsqueeze(3)
    yield (max_c + mean_c).sigmoid().unsqueeze(1)


CASES = {
    "axis_pools": lambda x: check(axis_pools, x, POOLS),
    "map_pools": lambda x: check(map_pools, x),
    "nested_gate": lambda x: check(
        nested_gate, x, gates(x.shape, x.dtype, (2, 3))[0].flatten(1), spatial, tolerance=loose(x)
    ),
    "nested_attention": lambda x: check(nested_attention, x, channels, spatial, tolerance=loose(x)),
    "score_gate": lambda x: check(score_gate, x, positive, of_map, "product", tolerance=loose(x)),
    "axis_gate of strips": lambda x: check(axis_gate, x, *gates(x.shape, x.dtype, (3,), (2,), (2, 3)), join="mixed"),
    "cross_gate": lambda x: check(cross_gate, x, *gates(x.shape, x.dtype, (2, 3), (1,)), "product"),
    "axis_gate": lambda x: check(axis_gate, x, *gates(x.shape, x.dtype, (2,), (3,), (1,)), join="sum"),
    "axis_attention": lambda x: check(
        axis_attention, x, POOLS, [(2,), (3,), (1,)], of_pools, join="sum", tolerance=loose(x)
    ),
}
OPS = pytest.mark.parametrize("op", CASES)


def loose(x):
    """What PyTorch makes of pools between the kernels is rounded in half precision, several times."""
    return 1.5e-2 if x.dtype == torch.bfloat16 else 2e-3 if x.dtype == torch.float16 else 1e-6


@DTYPES
@LAYOUT
@OPS
def test_all_dtypes(op, layout, dtype):
    CASES[op](maps(ODD, layout, dtype))


@SIZES
@LAYOUT
@pytest.mark.parametrize("op", ["axis_attention", "map_pools", "nested_gate", "nested_attention", "score_gate"])
def test_all_sizes(op, layout, size, in_parts):
    CASES[op](maps(size, layout))


@LAYOUT
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("residual", ["none", "other", "own"])
def test_residual_and_relu(residual, relu, layout):
    x, other = maps(ODD, layout), maps(ODD, layout, seed=1)
    residual = {"none": None, "other": other, "own": x}[residual]
    check(axis_gate, x, *gates(ODD, x.dtype, (2, 3), (1,)), residual=residual, relu=relu)
    pools = [("max", 1), ("mean", 1)]

    def make(maximum, mean):
        return [(maximum + mean).sigmoid().unsqueeze(1)]

    check(axis_attention, x, pools, [(1,)], make, residual=residual, relu=relu)
    if residual is not x:
        check(nested_attention, x, channels, spatial, residual, relu)
        check(nested_gate, x, gates(ODD, x.dtype, (2, 3))[0].flatten(1), spatial, residual, relu)


@pytest.mark.parametrize(
    ("join", "broadcast_dims"),
    [
        ("product", [(2, 3)]),
        ("product", [(1, 2, 3)]),
        ("product", [()]),
        ("product", [(1, 3), (2,), (1,)]),
        ("sum", [(3,), (1, 2)]),
        ("mixed", [(1,), (2, 3), (2,)]),
    ],
    ids=str,
)
@LAYOUT
def test_any_gates(join, broadcast_dims, layout, in_parts):
    check(axis_gate, maps(ODD, layout), *gates(ODD, torch.float32, *broadcast_dims), join=join)


@LAYOUT
def test_second_derivatives(layout):
    x, small = maps((2, 3, 2, 5), layout), (2, 3, 2, 5)
    rows, columns, channel = gates(small, x.dtype, (3,), (2,), (2, 3))
    check_second_derivatives(axis_pools, x, POOLS)
    check_second_derivatives(axis_gate, x, rows, columns, channel, join="mixed", residual=x + 1, relu=True)
    check_second_derivatives(axis_attention, x, POOLS, [(2,), (3,), (1,)], of_pools, join="sum", residual=x)
    check_second_derivatives(cross_gate, x, channel, gates(small, x.dtype, (1,))[0], "product")
    check_second_derivatives(nested_gate, x, channel.flatten(1), spatial)
    check_second_derivatives(nested_attention, x, channels, spatial, x + 1, True)
    check_second_derivatives(score_gate, x, positive, of_map, "sum")
    check_second_derivatives(map_pools, x)


def test_scores_may_be_added_before_the_sigmoid():
    check(cross_gate, maps(ODD, "NHWC"), *gates(ODD, torch.float32, (2, 3), (1,)), "sum")


@LAYOUT
def test_nan_is_the_maximum_and_zeros_of_both_signs_tie(layout):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        x = torch.full((1, 3, 2, 4), -0.0).to(dtype)
        x[0, 1] = 0
        x[0, :, 1, 2] = torch.tensor([-1.0, torch.nan, torch.inf])
        x[0, :, 1, 3] = torch.tensor([-torch.inf, -torch.nan, -1.0])
        x = laid_out(x, layout).requires_grad_()
        actual, expected = (axis_pools(x, POOLS, backend=backend) for backend in ("triton", "torch"))
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, e, equal_nan=True)
        (grad,) = torch.autograd.grad(actual[-2].sum(), x)
        assert grad.flatten(2).argmax(1).flatten().tolist() == [0, 0, 0, 0, 0, 0, 1, 1]


def test_a_gradient_in_another_layout():
    x, (gate,) = maps(ODD, "NHWC"), gates(ODD, torch.float32, (2, 3))
    x.requires_grad_()
    weight = random(*ODD, seed=5)
    (actual,) = torch.autograd.grad((map_pools(x, backend="triton")[0] * weight).sum(), x)
    assert torch.equal(actual, weight) and actual.stride() == x.stride()
    (actual,) = torch.autograd.grad(axis_gate(x, gate, backend="triton"), x, weight)
    torch.testing.assert_close(actual, weight * gate)


@LAYOUT
def test_the_same_bits_in_every_run(layout, in_parts):
    channel, position = gates(ODD, torch.float32, (2, 3), (1,))
    check(axis_gate, maps(ODD, layout), channel, position, repeat=True)
    check(axis_pools, maps(ODD, layout), POOLS, repeat=True)


def test_what_kernels_refuse_torch_takes():
    x, (gate,) = maps(ODD, "NCHW"), gates(ODD, torch.float32, (2, 3))
    for op, args, reason in [
        (axis_pools, (laid_out(x, "sliced"), POOLS), "neither as NCHW nor as NHWC"),
        (axis_gate, (x.double(), gate), "float16, bfloat16 and float32 only"),
        (axis_gate, (x, gate.double()), "float32 at most"),
        (map_pools, (x.new_empty(1, 1, 300, 300, dtype=torch.bfloat16),), "at most 65536 positions"),
        (axis_pools, (x[:0], POOLS), "not empty"),
    ]:
        assert reason in explain(op, *args, backend="triton").reason
        op(*args)
        with pytest.raises(ValueError, match=reason):
            op(*args, backend="triton")


def test_operators():
    x = maps(ODD, "NHWC").requires_grad_()
    two = [gate.requires_grad_() for gate in gates(ODD, torch.float32, (2, 3), (1,))]
    check_operator(launch.axis_gate, x, two, None, "product", False, False, True)
    x, dy, two = x.detach(), random(*ODD, seed=1), [gate.detach() for gate in two]
    check_operator(launch.axis_gate_backward, dy, None, x, two, "product", False, False, True, False)
    check_operator(launch.axis_pool, x, two[0], [4], [4, 3])
    mean, maximum, _, index, _ = launch.axis_pool(x, None, [4], [4, 3])
    check_operator(launch.axis_pool_backward, dy, x, two[0], mean, maximum, index, 4)
    check_operator(launch.axis_pool_backward, None, x, two[0], mean, maximum, index, 4)
    pools = ([mean], [4], [maximum], [index], [4])
    check_operator(launch.axis_spread, dy, dy, two, "product", False, True, list(ODD), True, *pools, 4)


@pytest.mark.parametrize("op", ["nested_gate", "axis_attention", "nested_attention", "score_gate"])
def test_compilers_and_exporters(op):
    x, (channel,) = maps(ODD, "NHWC"), gates(ODD, torch.float32, (2, 3))
    functions = {
        "nested_gate": lambda x, channel: nested_gate(map_pools(x)[0], channel.flatten(1), spatial),
        "nested_attention": lambda x, channel: nested_attention(x * channel, channels, spatial, x, True),
        "score_gate": lambda x, channel: score_gate(x * channel, positive, of_map, "sum"),
        "axis_attention": lambda x, channel: axis_attention(
            x * channel, POOLS, [(2,), (3,), (1,)], of_pools, join="sum", residual=x
        ),
    }
    check_compiles(functions[op], x, channel)
    check_exports(functions[op], x, channel)


def test_gradients_of_some_results_only():
    x = maps(ODD, "NCHW").requires_grad_()
    with use_backend("triton"):
        pools = axis_pools(x, POOLS)
        (grad,) = torch.autograd.grad(pools[3].sum(), x)
        torch.testing.assert_close(grad, torch.full_like(x, 1 / ODD[3]))
        (grad,) = torch.autograd.grad(map_pools(x)[1].sum(), x)
        torch.testing.assert_close(grad, torch.full_like(x, 1 / (ODD[2] * ODD[3])))


@pytest.mark.parametrize("op", ["nested_attention", "score_gate"])
def test_gates_that_are_not_learnt_from(op):
    x = maps(ODD, "NHWC")
    if op == "nested_attention":
        check(nested_attention, x, lambda mean, maximum: mean.detach().sigmoid(), lambda pools: spatial(pools.detach()))
    else:
        check(score_gate, x, lambda mean: mean.detach(), lambda x: of_map(x.detach()), "product")
