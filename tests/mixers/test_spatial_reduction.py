"""Spatial-reduction attention against the official code's recorded outputs and gradients."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from visionattn.mixers import SpatialReductionAttention
from visionattn.testing.fixtures import check_module, load


class Block(nn.Module):
    """The official block around the mixer, under the official names. `(B, C, H, W)`, same out."""

    def __init__(self, dim, heads, ratio, size):
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, dim, *size))
        self.gamma_1, self.gamma_2 = (nn.Parameter(torch.ones(dim)) for _ in range(2))
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = SpatialReductionAttention(dim, num_heads=heads, sr_ratio=ratio)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(dim, 4 * dim), "fc2": nn.Linear(4 * dim, dim)})

    def forward(self, x):
        x = (x + self.pos_embed).permute(0, 2, 3, 1)
        x = x + self.gamma_1 * self.attn(self.norm1(x))
        x = x + self.gamma_2 * self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))
        return x.permute(0, 3, 1, 2)


@pytest.mark.parametrize("name", ["stm_pvtblock_module_2x64x16x16_eval", "stm_pvtblock_module_1x48x18x10_eval"])
def test_golden(name):
    golden = load(name)
    facts = golden.meta["constructor"]
    block = Block(facts["channels"], facts["heads"], facts["sr"], golden.meta["input_shape"][2:])
    block.load_state_dict(golden.state_dict)
    check_module(block, golden, 1e-5)


def literal(mixer, x):
    """The paper's formula with a convolution over a padded NCHW map and one matrix of weights."""
    batch, height, width, dim = x.shape
    source = x
    if mixer.sr is not None:
        maps = x.permute(0, 3, 1, 2)
        if mixer.pool_size:
            maps = nn.AdaptiveAvgPool2d(mixer.pool_size)(maps)
        maps = F.pad(maps, (0, max(mixer.sr_ratio - maps.size(3), 0), 0, max(mixer.sr_ratio - maps.size(2), 0)))
        source = mixer.norm(mixer.sr(maps).permute(0, 2, 3, 1))
        if mixer.pool_size:
            source = F.gelu(source)
    heads = mixer.num_heads
    q = mixer.q(x).reshape(batch, -1, heads, dim // heads).transpose(1, 2)
    k, v = mixer.kv(source).reshape(batch, -1, 2, heads, dim // heads).permute(2, 0, 3, 1, 4)
    weights = (q @ k.transpose(-2, -1) * (dim // heads) ** -0.5).softmax(-1)
    return mixer.proj((weights @ v).transpose(1, 2).reshape(batch, height, width, dim))


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 2), (9, 8), (8, 11)], ids=str)
@pytest.mark.parametrize("options", [{}, {"sr_ratio": 2}, {"sr_ratio": 4}, {"pool_size": 3}], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_agrees_with_the_literal_formulation(size, options, bias):
    torch.manual_seed(0)
    mixer = SpatialReductionAttention(8, num_heads=2, qkv_bias=bias, **options).double()
    x = torch.randn(2, *size, 8, dtype=torch.float64, requires_grad=True)
    results = []
    for run in (mixer, lambda x: literal(mixer, x)):
        out = run(x)
        weight = torch.linspace(0, 1, out.numel(), dtype=out.dtype).view_as(out)
        results.append([out, *torch.autograd.grad((out * weight).sum(), [x, *mixer.parameters()])])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 8, "num_heads": 3}, "dim=8, num_heads=3"),
        ({"dim": 8, "num_heads": 2, "sr_ratio": 0}, "sr_ratio must be at least 1, got 0"),
        ({"dim": 8, "num_heads": 2, "pool_size": 0}, "pool_size=0"),
        ({"dim": 8, "num_heads": 2, "pool_size": 7, "sr_ratio": 2}, "pool_size=7, sr_ratio=2"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        SpatialReductionAttention(**arguments)
