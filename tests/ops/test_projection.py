"""Projection to queries, keys and values as tensors of their own."""

import pytest
import torch
from torch import nn

from visionattn.ops import project_apart


@pytest.mark.parametrize("bias", [True, False])
def test_is_the_projection(bias):
    torch.manual_seed(0)
    layer, x = nn.Linear(8, 24, bias=bias), torch.randn(2, 5, 8, requires_grad=True)
    parts = project_apart(layer, x)
    assert all(part.is_contiguous() for part in parts)
    leaves = [x, *layer.parameters()]
    results = []
    for out in (torch.stack(parts), torch.stack(layer(x).chunk(3, -1))):
        results.append((out, *torch.autograd.grad(out.sin().sum(), leaves)))
    for pair in zip(*results, strict=True):
        torch.testing.assert_close(*pair)


def test_what_is_no_plain_layer_is_called():
    layer, seen = nn.Linear(8, 24), []
    layer.register_forward_hook(lambda module, args, out: seen.append(out))
    x = torch.randn(2, 5, 8)
    project_apart(layer, x)
    project_apart(lambda tokens: seen.append(tokens) or layer.weight.sum() * tokens.repeat(1, 1, 3), x)
    assert len(seen) == 2
    half = project_apart(nn.Linear(8, 24).bfloat16(), x.bfloat16())
    assert [part.shape for part in half] == [(2, 5, 8)] * 3 and not half[0].is_contiguous()
