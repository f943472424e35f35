"""BAM (arXiv 1807.06514) written as its formulas read, with no eye on speed."""

from copy import deepcopy

from torch import nn
from torch.nn import functional as F


def bam(module, x):
    """`visionattn.plugins.BAM` with the same weights: both maps grown to the size of `x`, then joined."""
    channel = module.channel_gate(F.adaptive_avg_pool2d(x, 1).flatten(1))[:, :, None, None].expand_as(x)
    spatial = module.spatial_gate(x).expand_as(x)
    joined = channel * spatial if module.mode == "product" else channel + spatial
    return (1 + joined.sigmoid()) * x


class NaiveBAM(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = deepcopy(module)

    def forward(self, x):
        return bam(self.module, x)


def naive_of(module):
    """The literal module with the weights of a `BAM`."""
    return NaiveBAM(module)
