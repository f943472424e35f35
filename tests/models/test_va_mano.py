"""Multipole attention in Swin's layout: what its sizes and levels are, and that they hold at any size."""

import pytest
import timm
import torch

import visionattn  # noqa: F401
from visionattn.models.families.va_mano import MANO

NARROW = {"dims": (16, 32, 64, 128), "depths": (1, 1, 2, 1), "num_heads": (2, 2, 4, 8)}


def counted(dims, depths, several):
    """Parameters by the sheet's formulas, the layout being Swin's."""
    total = 3 * 16 * dims[0] + dims[0] + 2 * dims[0] + 2 * dims[-1] + 1000 * (dims[-1] + 1)
    for i, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
        total += 8 * dims[i - 1] + 4 * dims[i - 1] * dim if i else 0
        attention = 4 * dim + 3 * dim * dim + dim * dim + dim + (8 * dim * dim if several[i] else 0)
        total += depth * (attention + 2 * dim + 8 * dim * dim + 5 * dim)
    return total


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_sizes(size):
    model = timm.create_model(f"va_mano_{size}", device="meta")
    dims, depths = [96, 192, 384, 768], [2, 2, 6 if size == "tiny" else 18, 2]
    if size == "base":
        dims = [128, 256, 512, 1024]
    assert [stage.blocks[0].attn.fn.levels for stage in model.stages] == [4, 3, 2, 1]
    assert sum(p.numel() for p in model.parameters()) == counted(dims, depths, (True, True, True, False))


@pytest.mark.parametrize("size", [(160, 160), (224, 448), (97, 131), (32, 32)], ids=str)
def test_every_part_takes_part_at_any_size(size):
    torch.manual_seed(0)
    model = MANO(**NARROW)
    model(torch.randn(2, 3, *size)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_levels_are_given_or_follow_from_the_picture():
    def levels(**kwargs):
        return [stage.blocks[0].attn.fn.levels for stage in MANO(**NARROW, **kwargs).stages]

    assert levels(img_size=448) == [5, 4, 3, 2]
    assert levels(levels=(2, 2, 1, 1)) == [2, 2, 1, 1]
    with pytest.raises(ValueError, match=r"levels must hold one number for each of 4 stages, got \(2, 2\)"):
        MANO(**NARROW, levels=(2, 2))
