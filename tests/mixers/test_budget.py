"""How many times the map each mixer moves through memory and keeps in training: no more than the numbers below.

Counted operator by operator on the CPU, so exact: whoever makes a mixer move less lowers its numbers here.
"""

import pytest
import torch

from visionattn import mixers
from visionattn.cost import count_traffic

SHAPE = (4, 28, 28, 64)
CASES = {
    "boat": lambda: mixers.FeatureSpaceLocalAttention(64, num_heads=2),
    "cswin": lambda: mixers.CrossShapedWindowAttention(64, num_heads=2, split_size=2),
    "davit, channels": lambda: mixers.ChannelAttention(64, num_heads=2),
    "davit, windows": lambda: mixers.SpatialWindowAttention(64, num_heads=2),
    "dwconv": lambda: mixers.DepthwiseConvMixer(64),
    "flatten": lambda: mixers.FocusedLinearAttention(64, num_heads=2, grid_size=28),
    "halo": lambda: mixers.HaloAttention(64, num_heads=2),
    "lkca": lambda: mixers.LargeKernelConvAttention(64, grid_size=28, groups="heads", num_heads=2),
    "pool": lambda: mixers.AveragePool(64),
    "spatial reduction": lambda: mixers.SpatialReductionAttention(64, num_heads=2, sr_ratio=4),
    "twins, global": lambda: mixers.GlobalSubsampledAttention(64, num_heads=2, sr_ratio=4),
    "twins, local": lambda: mixers.LocallyGroupedAttention(64, num_heads=2, pad_mask="none"),
    "windows": lambda: mixers.WindowAttention(64, num_heads=2),
    "windows, shifted": lambda: mixers.WindowAttention(64, num_heads=2, shift_size=3),
}
# In bytes of the map: forward pass, backward pass, kept between them.
BUDGET = {
    "boat": (72.1, 61.3, 6.2),
    "cswin": (21.1, 56.2, 7.5),
    "davit, channels": (7.4, 12.9, 1.5),
    "davit, windows": (14.1, 40.2, 5.0),
    "dwconv": (6.1, 13.1, 3.0),
    "flatten": (45.9, 140.2, 5.1),
    "halo": (122.7, 132.7, 17.2),
    "lkca": (50.5, 104.0, 8.2),
    "pool": (5.0, 8.0, 0.0),
    "spatial reduction": (7.9, 21.4, 3.3),
    "twins, global": (7.9, 21.4, 3.3),
    "twins, local": (14.1, 40.2, 5.0),
    "windows": (33.4, 56.5, 6.5),
    "windows, shifted": (41.3, 62.1, 6.6),
}


@pytest.mark.parametrize("name", CASES)
def test_moves_and_keeps_no_more_than_agreed(name):
    torch.manual_seed(0)
    x = torch.randn(SHAPE)
    traffic = count_traffic(CASES[name]().train(), x)
    unit = x.numel() * x.element_size()
    counted = tuple(round(bytes_ / unit, 1) for bytes_ in (traffic.forward, traffic.backward, traffic.saved))
    assert counted == BUDGET[name], f"{name} moves and keeps {counted} times the map"
