"""Functions on tensors that the blocks share; the torch code here defines what they mean."""

from ._eager import written_by_hand
from .axis_pool import axis_pools
from .bisection import balanced_bisection
from .clusters import cluster_attention
from .cross import cross_gate
from .layout import memory_format
from .nested_gate import map_pools, nested_gate
from .plane_conv import plane_conv
from .pool import max_first
from .strip import strip_gate, strip_means
from .subspace import channel_moments, residual_gate, subspace_scores

__all__ = [
    "axis_pools",
    "balanced_bisection",
    "channel_moments",
    "cluster_attention",
    "cross_gate",
    "map_pools",
    "max_first",
    "memory_format",
    "nested_gate",
    "plane_conv",
    "residual_gate",
    "strip_gate",
    "strip_means",
    "subspace_scores",
    "written_by_hand",
]
