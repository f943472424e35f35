"""Token mixers for vision transformers: `(B, H, W, C) -> (B, H, W, C)`, any H, W."""

from .cswin import CrossShapedWindowAttention
from .dwconv import DepthwiseConvMixer
from .flatten import FocusedLinearAttention
from .halo import HaloAttention
from .lkca import LargeKernelConvAttention
from .pool import AveragePool
from .spatial_reduction import SpatialReductionAttention

__all__ = [
    "AveragePool",
    "CrossShapedWindowAttention",
    "DepthwiseConvMixer",
    "FocusedLinearAttention",
    "HaloAttention",
    "LargeKernelConvAttention",
    "SpatialReductionAttention",
]
