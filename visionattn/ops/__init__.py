"""Functions on tensors that the blocks share; the torch code here defines what they mean."""

from ._eager import written_by_hand
from .axis_pool import axis_pools
from .channel_attention import channel_attention, moments_pay, projected_channel_attention
from .cross import cross_gate
from .layout import memory_format
from .nested_gate import map_pools, nested_gate
from .plane_conv import plane_conv
from .pool import max_first
from .strip import strip_gate, strip_means
from .subspace import channel_moments, residual_gate, subspace_scores
from .windows import merge_windows, partition_windows, relative_position_bias, window_attention

__all__ = [
    "axis_pools",
    "channel_attention",
    "channel_moments",
    "cross_gate",
    "map_pools",
    "max_first",
    "memory_format",
    "merge_windows",
    "moments_pay",
    "nested_gate",
    "partition_windows",
    "plane_conv",
    "projected_channel_attention",
    "relative_position_bias",
    "residual_gate",
    "strip_gate",
    "strip_means",
    "subspace_scores",
    "window_attention",
    "written_by_hand",
]
