"""Functions on tensors that the blocks share; the torch code here defines what they mean."""

from ._eager import written_by_hand
from .axis_pool import axis_pools
from .cross import cross_gate
from .focused_attention import focused_attention, focused_features
from .halo_attention import halo_attention
from .large_kernel import interpolate_kernel, large_kernel_conv, toeplitz_matrix
from .layout import memory_format
from .nested_gate import map_pools, nested_gate
from .nhwc_conv import nhwc_conv
from .plane_conv import plane_conv
from .pool import max_first
from .strip import strip_gate, strip_means
from .stripe_attention import stripe_attention
from .subspace import channel_moments, residual_gate, subspace_scores

__all__ = [
    "axis_pools",
    "channel_moments",
    "cross_gate",
    "focused_attention",
    "focused_features",
    "halo_attention",
    "interpolate_kernel",
    "large_kernel_conv",
    "map_pools",
    "max_first",
    "memory_format",
    "nested_gate",
    "nhwc_conv",
    "plane_conv",
    "residual_gate",
    "strip_gate",
    "strip_means",
    "stripe_attention",
    "subspace_scores",
    "toeplitz_matrix",
    "written_by_hand",
]
