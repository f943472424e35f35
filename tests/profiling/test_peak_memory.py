"""The most memory held at once: known amounts, views, what is freed, and fused attention on the meta device."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from visionattn.profiling.peak_memory import peak_bytes


def test_what_is_freed_makes_room():
    x = torch.zeros(1000)
    assert peak_bytes(lambda: x + 1) == 4000
    assert peak_bytes(lambda: ((x + 1) * 2) + 3) == 8000  # an operator's input and result
    assert peak_bytes(lambda: [x + 1, x + 2, x + 3]) == 12000
    assert peak_bytes(lambda: [((x + 1) * 2) + 3, x[:10].clone()]) == 8000


def test_views_and_changes_in_place_take_nothing():
    x = torch.zeros(10, 100)
    assert peak_bytes(lambda: x.t().view(100, 2, 5).transpose(0, 1)) == 0
    assert peak_bytes(lambda: x.add_(1)) == 0
    assert peak_bytes(lambda: (x + 1).t().relu_().reshape(-1, 10)) == 4000


def test_what_the_backward_pass_needs_is_held():
    layers = nn.Sequential(*(nn.Sigmoid() for _ in range(5)))
    x = torch.zeros(1000, requires_grad=True)
    with torch.no_grad():
        assert peak_bytes(lambda: layers(x)) == 8000
    # Five results, and the gradient of the last two.
    assert peak_bytes(lambda: torch.autograd.grad(layers(x), x, torch.ones(1000))) >= 5 * 4000


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_fused_attention_never_holds_its_weights(device):
    q = torch.randn(1, 2, 512, 8, device=device)
    pairs = 4 * 2 * 512 * 512
    assert peak_bytes(lambda: F.scaled_dot_product_attention(q, q, q)) < pairs / 10
    assert peak_bytes(lambda: (q @ q.mT).softmax(-1) @ q) >= 2 * pairs
