"""Gating by channel and position scores: values, gradients, second derivatives and layouts, against the formula."""

from importlib import import_module

import pytest
import torch

from visionattn.ops import cross_gate

LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}


@pytest.fixture(autouse=True, params=[True, False], ids=["by hand", "plain"])
def by_hand(request, monkeypatch):
    if request.param:
        for module in ("axis_gate", "eager.nested_gate"):
            monkeypatch.setattr(import_module(f"visionattn.ops.{module}"), "_WORTHWHILE", 1)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mode", ["product", "sum"])
def test_gate(mode, layout):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64).to(memory_format=LAYOUTS[layout]).requires_grad_()
    channel = torch.randn(2, 3, 1, 1, dtype=torch.float64, requires_grad=True)
    spatial = torch.randn(2, 1, 4, 5, dtype=torch.float64, requires_grad=True)
    out = cross_gate(x, channel, spatial, mode)
    score = channel * spatial if mode == "product" else channel + spatial
    torch.testing.assert_close(out, x * (1 + score.sigmoid()))
    assert out.is_contiguous(memory_format=LAYOUTS[layout])
    gate = lambda *tensors: cross_gate(*tensors, mode)  # noqa: E731
    assert torch.autograd.gradcheck(gate, (x, channel, spatial))
    assert torch.autograd.gradgradcheck(gate, (x, channel, spatial))


def test_the_map_decides_the_dtype():
    channel = torch.randn(2, 3, 1, 1, dtype=torch.bfloat16, requires_grad=True)
    x = torch.randn(2, 3, 4, 5, requires_grad=True)
    out = cross_gate(x, channel, torch.randn(2, 1, 4, 5, dtype=torch.bfloat16), "product")
    assert out.dtype == torch.float32
    out.sum().backward()
    assert channel.grad.dtype == torch.bfloat16
