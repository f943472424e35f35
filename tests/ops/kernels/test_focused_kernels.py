"""Kernels of focused attention against its torch code: numbers and gradients, layouts, compilers, the whole mixer."""

import pytest
import torch
from kernels import (
    DEVICE,
    TOLERANCES,
    check,
    check_compiles,
    check_exports,
    check_operator,
    check_second_derivatives,
    close,
    laid_out,
    random,
)
from launches import Call, launches

from visionattn.mixers import FocusedLinearAttention
from visionattn.ops import explain, focused_attention, use_backend
from visionattn.ops.triton.focused_attention import focused_linear_attention

# Features are rounded to bfloat16 before they meet the values, and much of the scale's gradient cancels.
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 2e-2, torch.float16: 1e-3}
FORWARD = {**TOLERANCES, torch.bfloat16: 4e-3}
# Images, rows, columns, channels, heads, power, side of the convolution.
CASES = {
    "one head": (2, 7, 7, 32, 1, 3, None),
    "odd channels": (1, 7, 13, 36, 3, 1, None),
    "convolution": (2, 4, 6, 20, 1, 3, 5),
    "five heads": (1, 3, 5, 60, 5, 4, 3),
    "many tokens": (1, 3, 61, 16, 1, 3, None),
    "a square": (1, 14, 14, 8, 1, 2, None),
    "wide": (1, 2, 9, 128, 2, 3, None),
}
# Where each case of all precisions would cost much and show nothing.
LIGHT = ("one head", "five heads")


def operands(images, rows, columns, channels, heads, power, side, dtype=torch.float32, keys=None):
    tokens = rows * columns
    keys = tokens if keys is None else keys
    q, k, v = (random(images, n, channels, dtype=dtype, seed=i) for i, n in enumerate((tokens, keys, keys)))
    args = [q, k, v, random(channels, seed=3), random(keys, channels, dtype=dtype, seed=4)]
    kwargs = {"num_heads": heads, "focusing_factor": power}
    if side is not None:
        shapes = (channels, 1, side, side), (channels,)
        kwargs["convolution"] = tuple(random(*shape, dtype=dtype, seed=5) for shape in shapes)
        kwargs["grid"] = (rows, columns)
    return args, kwargs


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_values_and_gradients(case):
    args, kwargs = operands(*case)
    check(focused_attention, *args, tolerance=TOLERANCE[torch.float32], **kwargs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", LIGHT)
def test_half_precision(case, dtype):
    args, kwargs = operands(*CASES[case], dtype=dtype)
    check(focused_attention, *args, tolerance=TOLERANCE[dtype], **kwargs)
    check(focused_attention, *args, tolerance=FORWARD[dtype], grad=False, **kwargs)


@pytest.mark.parametrize("positions", [True, False], ids=["positions", "none"])
def test_fewer_keys_than_queries(positions):
    args, kwargs = operands(2, 3, 4, 24, 2, 3, None, keys=5)
    check(focused_attention, *args[: 4 + positions], tolerance=TOLERANCE[torch.float32], **kwargs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", LIGHT)
def test_parts_of_one_tensor(case, dtype):
    (q, k, v, *rest), kwargs = operands(*CASES[case], dtype=dtype)
    qkv = torch.cat((q, k, v), 2)
    check(focused_attention, qkv, None, None, *rest, tolerance=TOLERANCE[dtype], **kwargs)
    check(focused_attention, laid_out(qkv, "sliced"), None, None, *rest, grad=False, tolerance=1e-2, **kwargs)


def test_values_far_from_zero_keep_the_gradients():
    (q, k, v, *rest), kwargs = operands(1, 7, 7, 32, 1, 3, None, dtype=torch.bfloat16)
    check(focused_attention, q, k, v + 4, *rest, tolerance=TOLERANCE[torch.bfloat16], **kwargs)


@pytest.mark.parametrize("size", [1e-4, 1e4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_extreme_numbers_stay_finite(dtype, size):
    (q, k, v, scale, _), kwargs = operands(1, 4, 5, 32, 2, 3, None, dtype=dtype)
    q, k, v = (t * size for t in (q, k, v))
    q[0, 0], k[0, 0], q[0, 1] = -size - 1, -1, 0
    inputs = [t.requires_grad_() for t in (q, k, v, 5 * scale)]
    out = focused_attention(*inputs, backend="triton", **kwargs)
    expected = focused_attention(*(t.detach().double() for t in inputs), **kwargs)
    close("result", out, expected, TOLERANCE[dtype])
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(out.float().mean(), inputs))


def test_parts_of_one_projection_are_read_where_they_lie():
    qkv = random(2, 21, 3 * 24)
    (*_, scale, positions), kwargs = operands(2, 3, 7, 24, 2, 3, 3)
    weight, bias = kwargs.pop("convolution")

    def run(split):
        leaf = qkv.clone().requires_grad_()
        out = focused_attention(*split(leaf), scale, positions, convolution=(weight, bias), backend="triton", **kwargs)
        return out.detach(), torch.autograd.grad(out.sum(), leaf)[0]  # of a gradient without strides

    apart = run(lambda t: [part.contiguous() for part in t.chunk(3, 2)])
    assert all(torch.equal(*pair) for pair in zip(run(lambda t: t.chunk(3, 2)), apart, strict=True))

    args = (*qkv.chunk(3, 2), positions, scale.exp(), weight, bias, 7, 2, 3)
    given = [t for launch in launches(Call("views", focused_linear_attention, args)) for t in launch.args]
    read = [t for t in given if isinstance(t, torch.Tensor) and t.shape == (2, 21, 24)]
    lying = [t for t in read if t.untyped_storage().data_ptr() == qkv.untyped_storage().data_ptr()]
    assert len(lying) == 4 and len(read) == 5  # k, v; q, v, and the result


@pytest.mark.parametrize("complete", [True, False], ids=["all", "least"])
def test_operators(complete):
    (q, k, v, scale, positions), kwargs = operands(1, 2, 3, 12, 2, 2, 3)
    extra = [positions, scale.exp(), *kwargs["convolution"]] if complete else [None, scale.exp(), None, None]
    for parts in ((q, k, v), (torch.cat((q, k, v), 2), None, None)):
        args = [t if t is None else t.detach().requires_grad_() for t in (*parts, *extra)]
        check_operator(focused_linear_attention, *args, 3, 2, 2)


def test_compilers_and_exporters():
    args, kwargs = operands(1, 2, 3, 12, 1, 2, 3)
    weight, bias = kwargs.pop("convolution")

    def function(weight, bias, *args):
        return focused_attention(*args, convolution=(weight, bias), **kwargs) + 1

    check_compiles(function, weight, bias, *args)
    check_exports(function, weight, bias, *args)
    check_compiles(lambda qkv, *rest: function(weight, bias, qkv, None, None, *rest), torch.cat(args[:3], 2), *args[3:])


@pytest.mark.parametrize("complete", [True, False], ids=["all", "least"])
def test_second_derivatives(complete):
    args, kwargs = operands(1, 2, 3, 12, 2, 2, 3 if complete else None)
    check_second_derivatives(focused_attention, *args[: 4 + complete], tolerance=1e-3, **kwargs)
    qkv = torch.cat(args[:3], 2)
    check_second_derivatives(focused_attention, qkv, None, None, *args[3 : 4 + complete], tolerance=1e-3, **kwargs)


def test_what_kernels_do_not_take_is_said():
    (q, k, v, scale, _), kwargs = operands(1, 3, 4, 144, 2, 3, 3)
    del kwargs["convolution"]

    def reason(*args, **other):
        return explain(focused_attention, *args, scale, **{**kwargs, **other}, backend="triton").reason

    assert reason(q, k, v) == "asked for triton, but heads are wider than 64"
    kwargs["num_heads"] = 3
    assert reason(q, k, v) == "asked for"
    assert "only the linear order has one" in reason(q, k, v, quadratic=True)
    assert "torch.float32, torch.float32 and torch.float16" in reason(q, k, v.half())
    assert "do not lie together" in reason(q, k, v.mT.contiguous().mT)
    assert "more than 16" in reason(q, k, v, focusing_factor=17)
    convolution = (random(144, 1, 13, 13), random(144))
    assert "larger than 11" in reason(q, k, v, convolution=convolution)
    for grid in ((3, 5), None):
        convolution = (random(144, 1, 3, 3), random(144))
        with pytest.raises(ValueError, match="the grid does not fit"):
            focused_attention(q, k, v, scale, **{**kwargs, "grid": grid}, convolution=convolution, backend="triton")


MIXERS = {
    "plain": {"num_heads": 2, "grid_size": (3, 5)},
    "another map": {"num_heads": 1, "grid_size": 4, "lepe": True},
    "windows": {"num_heads": 2, "window_size": (2, 5), "kernel_size": 3},
    "reduced": {"num_heads": 2, "grid_size": (3, 5), "sr_ratio": 2},
}


@pytest.mark.parametrize("amp", [False, True], ids=["single", "autocast"])
@pytest.mark.parametrize("settings", MIXERS.values(), ids=MIXERS)
def test_the_mixer(settings, amp):
    torch.manual_seed(0)
    mixer = FocusedLinearAttention(16, **settings).to(DEVICE)
    with torch.no_grad():
        for name in ("scale", "positional_encoding"):
            parameter = getattr(mixer, name)
            if parameter is not None:
                parameter.normal_()
    x = random(1, 3, 5, 16).requires_grad_()

    def run(backend):
        with use_backend(backend), torch.autocast(DEVICE, torch.bfloat16, enabled=amp):
            out = mixer(x)
        grads = torch.autograd.grad(out.float().square().sum(), (x, *mixer.parameters()))
        names = ("x", *(name for name, _ in mixer.named_parameters()))
        return {"result": out.detach(), **dict(zip(names, grads, strict=True))}

    kernels, plain = run("triton"), run("torch")
    for name, value in kernels.items():
        assert value.dtype == plain[name].dtype
        # The scale's gradient is a sum that nearly cancels, in the torch code too.
        close(name, value, plain[name], 5e-2 if amp else 5e-5)
