"""Token mixers for vision transformers: `(B, H, W, C) -> (B, H, W, C)`, any H, W."""

from .davit import ChannelAttention, SpatialWindowAttention
from .twins import GlobalSubsampledAttention, LocallyGroupedAttention
from .window import WindowAttention

__all__ = [
    "ChannelAttention",
    "GlobalSubsampledAttention",
    "LocallyGroupedAttention",
    "SpatialWindowAttention",
    "WindowAttention",
]
