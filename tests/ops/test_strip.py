"""Strip pooling and gating: values, gradients, second derivatives and layouts, against the plain formulas."""

import pytest
import torch

from visionattn.ops import strip_gate, strip_means

LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}


def operands(layout, *, offset=True, dtype=torch.float64, requires_grad=True):
    torch.manual_seed(0)
    shapes = [(2, 3, 4, 5), (2, 3, 4, 1), (2, 3, 1, 5)] + [(2, 3, 1, 1)] * offset
    tensors = [torch.randn(shape, dtype=dtype) for shape in shapes]
    tensors[0] = tensors[0].to(memory_format=LAYOUTS[layout])
    return [tensor.requires_grad_(requires_grad) for tensor in tensors]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_means(layout):
    x = operands(layout)[0]
    rows, columns = strip_means(x)
    torch.testing.assert_close(rows, x.mean(3, keepdim=True))
    torch.testing.assert_close(columns, x.mean(2, keepdim=True))
    (rows.sin().sum() + columns.cos().sum()).backward()
    y = x.detach().clone().requires_grad_()
    (y.mean(3).sin().sum() + y.mean(2).cos().sum()).backward()
    torch.testing.assert_close(x.grad, y.grad)
    assert torch.autograd.gradgradcheck(strip_means, (x,))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("offset", [False, True])
def test_gate(layout, offset):
    x, rows, columns, *rest = operands(layout, offset=offset)
    out = strip_gate(x, rows, columns, *rest)
    torch.testing.assert_close(out, x * (rows * columns + (rest[0] if rest else 0)))
    assert out.is_contiguous(memory_format=LAYOUTS[layout])
    assert torch.autograd.gradcheck(strip_gate, (x, rows, columns, *rest))
    assert torch.autograd.gradgradcheck(strip_gate, (x, rows, columns, *rest))


def test_gate_of_a_frozen_map():
    x, rows, columns = operands("nchw", offset=False)
    strip_gate(x.detach(), rows, columns).sum().backward()
    torch.testing.assert_close(rows.grad, (x * columns).sum(3, keepdim=True).detach())


def test_any_strides():
    x, rows, columns, offset = operands("nchw", requires_grad=False)
    view = x.transpose(1, 3).contiguous().transpose(1, 3)[:, :, ::2]
    torch.testing.assert_close(strip_means(view)[1], view.mean(2, keepdim=True))
    rows = rows[:, :, ::2]
    torch.testing.assert_close(strip_gate(view, rows, columns, offset), view * (rows * columns + offset))


def test_the_map_decides_the_dtype():
    x, rows, columns, offset = operands("nchw", dtype=torch.bfloat16)
    out = strip_gate(x.float().detach().requires_grad_(), rows, columns, offset)
    assert out.dtype == torch.float32
    out.sum().backward()
    assert rows.grad.dtype == torch.bfloat16
