"""The comparison itself: it must find what can be wrong with a kernel."""

import sys
from types import ModuleType

import pytest
import torch
import triton
import triton.language as tl
from kernels import DTYPES, LAYOUTS, check, check_compiles, check_exports, check_operator, laid_out, random

from visionattn.ops._dispatch import has_kernel
from visionattn.ops.triton._register import register, wrap_triton


@triton.jit
def _scale(x, out, size, factor, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(x + at, at < size).to(tl.float32) * factor, at < size)


def _like(x: torch.Tensor, factor: float, forgotten: int) -> torch.Tensor:
    return torch.empty_like(x)


def _setup(ctx, inputs, output):
    x, ctx.factor, _ = inputs
    ctx.layout = torch.contiguous_format if x.is_contiguous() else torch.channels_last


def _backward(ctx, grad):
    return example_scale(grad.contiguous(memory_format=ctx.layout), ctx.factor, 0), None, None


@register(_like, _setup, _backward)
def example_scale(x: torch.Tensor, factor: float, forgotten: int) -> torch.Tensor:
    out = torch.empty_like(x)
    size = x.numel() - forgotten
    wrap_triton(_scale)[(triton.cdiv(size, 16),)](x, out, size, factor, BLOCK=16)
    return out


@pytest.fixture(params=["right", "unwritten", "imprecise", "transposed"])
def op(request, monkeypatch):
    kernels = ModuleType("visionattn.ops.triton.example")
    kernels.doubled = {
        "right": lambda x: example_scale(x, 2.0, 0),
        "unwritten": lambda x: example_scale(x, 2.0, 1),
        "imprecise": lambda x: example_scale(x, 2.02, 0),
        "transposed": lambda x: example_scale(x, 2.0, 0).mT.contiguous().mT,
    }[request.param]
    monkeypatch.setitem(sys.modules, kernels.__name__, kernels)

    @has_kernel("example", lambda x: "")
    def doubled(x):
        return x * 2

    doubled.right = request.param == "right"
    return doubled


@DTYPES
@pytest.mark.parametrize("layout", LAYOUTS)
def test_right_passes_and_wrong_does_not(op, layout, dtype):
    x = laid_out(random(2, 3, 5, 7, dtype=dtype), layout)
    if op.right:
        check(op, x)
        return
    with pytest.raises(AssertionError):
        check(op, x)


@pytest.mark.parametrize("op", ["right"], indirect=True)
def test_compilers_and_exporters(op):
    x = random(2, 3, 5, 7)
    check_operator(example_scale, x.requires_grad_(), 2.0, 0)
    check_compiles(lambda x: op(x) + 1, x)
    check_exports(lambda x: op(x) + 1, x)


def test_what_stands_around_a_map_is_no_number():
    for layout in (*LAYOUTS, "sliced"):
        x = laid_out(random(2, 3, 5, 7), layout)
        assert torch.equal(x, random(2, 3, 5, 7))
        storage = torch.tensor([], dtype=x.dtype, device=x.device).set_(x.untyped_storage())
        assert storage.isfinite().sum() == x.numel() < len(storage)
        assert x.is_contiguous(memory_format=torch.channels_last) == (layout == "NHWC")
