"""Token mixers for vision transformers: `(B, H, W, C) -> (B, H, W, C)`, any H, W."""

from .boat import FeatureSpaceLocalAttention
from .cswin import CrossShapedWindowAttention
from .davit import ChannelAttention, SpatialWindowAttention
from .dwconv import DepthwiseConvMixer
from .flatten import FocusedLinearAttention
from .halo import HaloAttention
from .lkca import LargeKernelConvAttention
from .pool import AveragePool
from .softmax import SoftmaxAttention
from .spatial_reduction import SpatialReductionAttention
from .twins import GlobalSubsampledAttention, LocallyGroupedAttention
from .window import WindowAttention

__all__ = [
    "AveragePool",
    "ChannelAttention",
    "CrossShapedWindowAttention",
    "DepthwiseConvMixer",
    "FeatureSpaceLocalAttention",
    "FocusedLinearAttention",
    "GlobalSubsampledAttention",
    "HaloAttention",
    "LargeKernelConvAttention",
    "LocallyGroupedAttention",
    "SoftmaxAttention",
    "SpatialReductionAttention",
    "SpatialWindowAttention",
    "WindowAttention",
]
