"""Attributions through captum on networks whose answer is known."""

import pytest
import torch
from explained import small
from torch import nn

from visionattn import explain


class Sees(nn.Module):
    """Class 1 is what lies in a corner of the picture, class 0 is always 0."""

    def forward(self, x):
        seen = x[:, :, :16, 16:].mean((1, 2, 3))
        return torch.stack((torch.zeros_like(seen), seen), 1)


def blocks(side):
    """Pictures of 8 x 8 areas of one colour each, of which superpixels can be made."""
    colours = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) + 0.5
    return colours.repeat_interleave(side // 8, 2).repeat_interleave(side // 8, 3)


@pytest.mark.parametrize("method", explain.ATTRIBUTIONS)
@pytest.mark.parametrize("target", [None, 1, [1, 1], lambda logits: logits[:, 1]])
def test_what_is_not_seen_gets_nothing(method, target):
    x = blocks(32)
    before = torch.random.get_rng_state()
    found = explain.attribution(Sees(), x, target, method=method)
    assert torch.equal(torch.random.get_rng_state(), before)
    inside = found[:, :16, 16:]
    assert found.shape == (2, 32, 32) and inside.mean() > 20 * (found.sum() - inside.sum()).abs() / found.numel()


def test_gradients_add_up_to_the_difference_of_the_scores():
    model, x = small("va_stm_swin_nano")
    model.train()
    found = explain.attribution(model, x, 3)
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    model.eval()
    with torch.no_grad():
        expected = model(x)[:, 3] - model(torch.zeros_like(x))[:, 3]
    torch.testing.assert_close(found.sum((1, 2)), expected, rtol=0.1, atol=1e-4)


def test_lime_is_the_same_in_each_call():
    model, _ = small("resnet10t")
    x = blocks(64)
    first, second = (explain.attribution(model, x[:1], method="captum:lime") for _ in range(2))
    assert torch.equal(first, second) and len(first.unique()) > 5  # of superpixels


def test_mistakes():
    with pytest.raises(ValueError, match=r"method must be one of captum:integrated-gradients, .*, got 'lime'"):
        explain.attribution(Sees(), torch.ones(1, 3, 32, 32), method="lime")
    with pytest.raises(ValueError, match=r"target must lie in 0\.\.1, got 2"):
        explain.attribution(Sees(), torch.ones(1, 3, 32, 32), 2)
    with pytest.raises(ValueError, match="target must be a function of the network's output"):
        explain.attribution(nn.Identity(), torch.ones(1, 3, 32, 32), 1)
