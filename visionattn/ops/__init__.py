"""Functions on tensors that the blocks share; the torch code here defines what they mean."""

from ._dispatch import explain, use_backend
from ._eager import is_unmodified, use_eager_kernel
from .attention import attention
from .axis_gate import axis_attention, axis_gate
from .axis_pool import axis_pools
from .bisection import balanced_bisection
from .channel_attention import channel_attention, moments_pay, projected_channel_attention
from .clusters import cluster_attention
from .cross import cross_gate
from .focused_attention import focused_attention, focused_features
from .gathered import Windows, gathered_attention
from .halo_attention import halo_attention
from .large_kernel import interpolate_kernel, large_kernel_conv, toeplitz_matrix
from .layout import memory_format
from .mlp import mlp
from .nested_gate import map_pools, nested_gate
from .nhwc_conv import nhwc_conv
from .plane_conv import plane_conv
from .pool import max_first
from .strip import strip_gate, strip_means
from .stripe_attention import stripe_attention
from .subspace import channel_moments, residual_gate, subspace_pays, subspace_scores
from .windows import merge_windows, partition_windows, relative_position_bias, window_attention

__all__ = [
    "Windows",
    "attention",
    "axis_attention",
    "axis_gate",
    "axis_pools",
    "balanced_bisection",
    "channel_attention",
    "channel_moments",
    "cluster_attention",
    "cross_gate",
    "explain",
    "focused_attention",
    "focused_features",
    "gathered_attention",
    "halo_attention",
    "interpolate_kernel",
    "is_unmodified",
    "large_kernel_conv",
    "map_pools",
    "max_first",
    "memory_format",
    "merge_windows",
    "mlp",
    "moments_pay",
    "nested_gate",
    "nhwc_conv",
    "partition_windows",
    "plane_conv",
    "projected_channel_attention",
    "relative_position_bias",
    "residual_gate",
    "strip_gate",
    "strip_means",
    "stripe_attention",
    "subspace_pays",
    "subspace_scores",
    "toeplitz_matrix",
    "use_backend",
    "use_eager_kernel",
    "window_attention",
]
