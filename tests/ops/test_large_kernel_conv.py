"""Large-kernel convolution: three formulations against PyTorch's, the matrix, resized kernels, and the choice."""

import pytest
import torch
from torch.nn import functional as F

from visionattn.ops import interpolate_kernel, large_kernel_conv, toeplitz_matrix
from visionattn.ops.large_kernel_conv import _choose, _fft_length
from visionattn.testing.fixtures import relative_error

BACKENDS = ("conv", "matmul", "fft")
GRIDS = [(1, 1), (1, 9), (7, 1), (2, 3), (5, 4), (8, 8)]
KERNELS = ["full", (1, 1), (3, 5), (5, 3), (31, 33)]


def operands(grid, groups, kernel, batch=2, dim=6, dtype=torch.float64):
    torch.manual_seed(0)
    sides = tuple(2 * side - 1 for side in grid) if kernel == "full" else kernel
    x = torch.randn(batch, *grid, dim, dtype=dtype, requires_grad=True)
    return x, torch.randn(groups, 1, *sides, dtype=dtype, requires_grad=True)


def expected(x, kernel):
    groups = x.size(3)
    kernel = kernel.repeat_interleave(groups // len(kernel), 0)
    padding = (kernel.size(2) // 2, kernel.size(3) // 2)
    return F.conv2d(x.permute(0, 3, 1, 2), kernel, padding=padding, groups=groups).permute(0, 2, 3, 1)


@pytest.mark.parametrize("backend", [*BACKENDS, None])
@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("kernel", KERNELS, ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_every_formulation_is_the_convolution(grid, kernel, groups, backend):
    x, kernel = operands(grid, groups, kernel)
    reference = expected(x, kernel)
    out = large_kernel_conv(x, kernel, backend=backend)
    torch.testing.assert_close(out, reference, rtol=1e-10, atol=1e-10)
    weight = torch.randn_like(out)
    grads = torch.autograd.grad(reference, (x, kernel), weight)
    torch.testing.assert_close(torch.autograd.grad(out, (x, kernel), weight), grads, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
def test_derivatives(backend):
    operand = operands((3, 2), 2, (5, 5), batch=1, dim=4)
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(lambda *args: large_kernel_conv(*args, backend=backend), operand, fast_mode=True)


@pytest.mark.parametrize("frozen", [0, 1])
def test_one_operand_frozen(frozen):
    operand = operands((4, 4), 6, "full")
    reference = torch.autograd.grad(expected(*operand).sum(), operand[1 - frozen])
    operand[frozen].requires_grad_(False)
    out = large_kernel_conv(*operand, backend="conv")
    torch.testing.assert_close(torch.autograd.grad(out.sum(), operand[1 - frozen]), reference)


@pytest.mark.parametrize("backend", BACKENDS)
def test_any_strides_and_no_images(backend):
    x, kernel = operands((5, 4), 2, "full")
    view = x.detach().permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    torch.testing.assert_close(large_kernel_conv(view, kernel, backend=backend), expected(x, kernel))
    assert large_kernel_conv(x[:0], kernel, backend=backend).shape == (0, 5, 4, 6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_half_precision(backend, groups, dtype):
    x, kernel = operands((6, 5), groups, "full")
    grads = torch.autograd.grad(expected(x, kernel).square().sum(), (x, kernel))
    halves = [tensor.detach().to(dtype).requires_grad_() for tensor in (x, kernel)]
    out = large_kernel_conv(*halves, backend=backend)
    assert out.dtype == dtype and relative_error(out, expected(x, kernel)) < 0.02
    for actual, reference in zip(torch.autograd.grad(out.square().sum(), halves), grads, strict=True):
        assert actual.dtype == dtype and relative_error(actual, reference) < 0.03


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast(backend):
    x, kernel = operands((6, 5), 2, "full", dtype=torch.float32)
    grads = torch.autograd.grad(expected(x, kernel).square().sum(), (x, kernel))
    with torch.autocast("cpu", torch.bfloat16):
        out = large_kernel_conv(x, kernel, backend=backend)
    assert relative_error(out, expected(x, kernel)) < 0.02
    for actual, reference in zip(torch.autograd.grad(out.square().sum(), (x, kernel)), grads, strict=True):
        assert actual.dtype == torch.float32 and relative_error(actual, reference) < 0.03


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_the_matrix_is_the_convolution(grid, kernel):
    x, kernel = operands(grid, 2, kernel)
    matrix = toeplitz_matrix(kernel, *grid)
    first = expected(x, kernel)[..., :3].flatten(1, 2)
    torch.testing.assert_close(matrix[0] @ x[..., :3].flatten(1, 2), first)


def test_interpolated_kernels_span_the_grid():
    kernel = torch.randn(2, 1, 5, 7, dtype=torch.float64)
    assert interpolate_kernel(kernel, 3, 4) is kernel
    assert interpolate_kernel(kernel, 2, 2) is kernel
    larger = interpolate_kernel(kernel, 5, 7)
    by_torch = F.interpolate(kernel, (9, 13), mode="bilinear", align_corners=True) * (3 * 4) / (5 * 7)
    torch.testing.assert_close(larger, by_torch)
    assert interpolate_kernel(kernel, 1, 9).shape == (2, 1, 5, 17)
    for sides in ((5, 5), (1, 1)):  # A position sees 9 of weight one, or itself; then 48 of less.
        kernel = torch.ones(1, 1, *sides)
        positions = (sides[0] // 2 + 1) * (sides[1] // 2 + 1)
        torch.testing.assert_close(48 * interpolate_kernel(kernel, 8, 6), torch.full((1, 1, 15, 11), 1.0 * positions))


@pytest.mark.parametrize(
    ("size", "kernel", "by_hand", "eager", "exported"),
    [
        ((14, 14, 192), (1, 1, 27, 27), True, "matmul", "matmul"),
        ((14, 14, 192), (6, 1, 27, 27), True, "matmul", "matmul"),
        ((14, 14, 192), (192, 1, 27, 27), True, "conv", "conv"),
        ((14, 14, 192), (192, 1, 27, 27), False, "fft", "conv"),
        ((14, 14, 192), (1, 1, 7, 7), True, "conv", "conv"),
        ((14, 14, 192), (1, 1, 7, 7), False, "matmul", "conv"),
        ((28, 28, 192), (1, 1, 55, 55), True, "fft", "matmul"),
        ((56, 56, 96), (1, 1, 111, 111), True, "fft", "matmul"),
        ((56, 56, 96), (4, 1, 111, 111), True, "fft", "conv"),
        ((56, 56, 96), (96, 1, 111, 111), True, "fft", "conv"),
        ((56, 56, 96), (96, 1, 13, 13), True, "conv", "conv"),
        ((1, 1, 8), (8, 1, 27, 27), True, "conv", "conv"),
    ],
)
def test_choice(size, kernel, by_hand, eager, exported):
    assert _choose(size, kernel, by_hand=by_hand, exportable=False) == eager
    assert _choose(size, kernel, by_hand=by_hand, exportable=True) == exported


def test_lengths_of_transforms():
    assert [_fft_length(n) for n in (1, 11, 27, 41, 111, 121)] == [1, 12, 27, 42, 112, 125]


@pytest.mark.parametrize("shape", [(1, 1, 2, 3), (1, 1, 3, 4), (1, 2, 3, 3), (1, 3, 3)], ids=str)
def test_bad_kernels(shape):
    with pytest.raises(ValueError, match=r"kernel must be \(G, 1, odd, odd\), got"):
        large_kernel_conv(torch.zeros(1, 4, 4, 6), torch.zeros(shape))
    with pytest.raises(ValueError, match="kernel must be"):
        toeplitz_matrix(torch.zeros(shape), 4, 4)


def test_bad_arguments():
    with pytest.raises(ValueError, match="must divide the channels, got 4 for 6"):
        large_kernel_conv(torch.zeros(1, 4, 4, 6), torch.zeros(4, 1, 3, 3))
    with pytest.raises(ValueError, match="backend must be one of conv, matmul, fft, got 'cuda'"):
        large_kernel_conv(torch.zeros(1, 4, 4, 6), torch.zeros(1, 1, 3, 3), backend="cuda")
