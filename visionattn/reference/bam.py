"""BAM (arXiv 1807.06514) written as its formulas read, with no eye on speed."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ._literal import Literal


def bam(module: Any, x: torch.Tensor) -> torch.Tensor:
    """`visionattn.plugins.BAM` with the same weights: both maps grown to the size of `x`, then joined."""
    channel = module.channel_gate(F.adaptive_avg_pool2d(x, 1).flatten(1))[:, :, None, None].expand_as(x)
    spatial = module.spatial_gate(x).expand_as(x)
    joined = channel * spatial if module.mode == "product" else channel + spatial
    return (1 + joined.sigmoid()) * x


def naive_of(module: nn.Module) -> Literal:
    """The literal module with the weights of a `BAM`."""
    return Literal(bam, module)
