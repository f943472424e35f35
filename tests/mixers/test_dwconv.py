"""The depthwise convolution mixer against the official code's recorded outputs and gradients."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from visionattn.mixers import DepthwiseConvMixer
from visionattn.testing.fixtures import check_module, load


class Block(nn.Module):
    """The official block around the mixer. `(B, C, H, W)`, same out."""

    def __init__(self, dim):
        super().__init__()
        self.gamma_1, self.gamma_2 = nn.Parameter(torch.ones(1, dim, 1, 1)), nn.Parameter(torch.ones(1, 1, 1, dim))
        self.dw_norm, self.pw_norm = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.mixer = DepthwiseConvMixer(dim)
        self.pwconv1, self.pwconv2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x):
        x = x.permute(0, 2, 3, 1)
        x = x + self.gamma_1.flatten() * self.mixer(self.dw_norm(x))
        x = x + self.gamma_2 * self.pwconv2(F.gelu(self.pwconv1(self.pw_norm(x))))
        return x.permute(0, 3, 1, 2)


@pytest.mark.parametrize("name", ["stm_dwconvblock_module_2x64x14x14_eval", "stm_dwconvblock_module_1x48x17x9_eval"])
def test_golden(name):
    golden = load(name)
    block = Block(golden.meta["constructor"]["channels"])
    inside = set(block.mixer.state_dict())
    block.load_state_dict({f"mixer.{key}" if key in inside else key: v for key, v in golden.state_dict.items()})
    check_module(block, golden, 1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_is_three_convolutions(bias):
    torch.manual_seed(0)
    mixer = DepthwiseConvMixer(6, kernel_size=5, bias=bias)
    x = torch.randn(2, 3, 7, 6)
    expected = nn.Sequential(*mixer.children())(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(mixer(x), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 0}, "dim must be at least 1, got 0"),
        ({"dim": 8, "kernel_size": 4}, "kernel_size must be a positive odd number, got 4"),
        ({"dim": 8, "kernel_size": -1}, "got -1"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        DepthwiseConvMixer(**arguments)
