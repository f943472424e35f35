"""Halo attention against the official code's recorded outputs and gradients."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from visionattn.mixers import HaloAttention
from visionattn.reference.halo import naive_halo
from visionattn.testing.fixtures import check_module, load


class Block(nn.Module):
    """The official block around the mixer, under the official names."""

    def __init__(self, dim, heads):
        super().__init__()
        self.gamma_1, self.gamma_2 = (nn.Parameter(torch.ones(1, 1, 1, dim)) for _ in range(2))
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = HaloAttention(dim, num_heads=heads)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(dim, 4 * dim), "fc2": nn.Linear(4 * dim, dim)})

    def forward(self, x):
        x = x + self.gamma_1 * self.attn(self.norm1(x))
        return x + self.gamma_2 * self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("stm_haloattn_module_2x14x14x64_eval", lambda dim, heads: HaloAttention(dim, num_heads=heads)),
        ("stm_haloblock_module_2x14x14x64_eval", Block),
        ("stm_haloblock_module_1x14x21x48_eval", Block),
    ],
)
def test_golden(name, build):
    golden = load(name)
    module = build(golden.meta["constructor"]["channels"], golden.meta["constructor"]["heads"])
    module.load_state_dict(golden.state_dict)
    check_module(module, golden, 1e-5)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (3, 2), (7, 5), (6, 9)], ids=str)
@pytest.mark.parametrize(("block", "halo"), [(3, 1), (2, 2), (4, 0), (2, 3)])
def test_agrees_with_the_formula(size, block, halo):
    torch.manual_seed(0)
    mixer = HaloAttention(8, num_heads=2, block_size=block, halo_size=halo).double()
    x = torch.randn(2, *size, 8, dtype=torch.float64, requires_grad=True)
    results = []
    for run in (mixer, lambda x: naive_halo(mixer, x)):
        out = run(x)
        weight = torch.linspace(0, 1, out.numel(), dtype=out.dtype).view_as(out)
        results.append([out, *torch.autograd.grad((out * weight).sum(), [x, *mixer.parameters()])])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def test_starts_with_embeddings_as_long_as_queries():
    mixer = HaloAttention(64, num_heads=4, block_size=64)
    assert mixer.pos_embed.height_rel.std().item() == pytest.approx(0.25, rel=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 8, "num_heads": 3}, "dim=8, num_heads=3"),
        ({"dim": 8, "num_heads": 0}, "num_heads=0"),
        ({"dim": 8, "num_heads": 2, "block_size": 0}, "block_size must be at least 1, got 0"),
        ({"dim": 8, "num_heads": 2, "halo_size": -1}, "halo_size must be at least 0, got -1"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        HaloAttention(**arguments)
