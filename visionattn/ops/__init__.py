"""Tensor operations shared by the blocks; the torch code here defines them."""

from ._autocast import widened
from ._dispatch import explain, use_backend
from .attention import attention
from .axis_gate import axis_attention, axis_gate
from .axis_pools import axis_pools
from .balanced_bisection import balanced_bisection
from .bidirectional_wkv import bidirectional_wkv
from .block_map import BlockMap, hilbert_order
from .block_sparse_attention import Windows, block_sparse_attention
from .channel_attention import channel_attention, prefer_moments, projected_channel_attention
from .cluster_attention import cluster_attention
from .cross_gate import cross_gate, score_gate
from .cross_scan import cross_merge, cross_scan
from .focused_attention import focused_attention, focused_features
from .gated_scan import gated_scan, linear_recurrence
from .halo_attention import halo_attention
from .large_kernel_conv import interpolate_kernel, large_kernel_conv, toeplitz_matrix
from .layout import memory_format
from .masked_attention import Blocks, masked_attention, pair_mask
from .max_first import max_first
from .memory_scan import memory_scan
from .mixture_attention import mixture_attention, mixture_weights
from .moving_average import ema_kernel, moving_average
from .nested_gate import map_pools, nested_attention, nested_gate
from .nhwc_conv import nhwc_conv, nhwc_upconv
from .packed_attention import Packing, pack_tokens, packed_attention
from .plane_conv import plane_conv
from .polynomial_attention import polynomial_attention
from .projection import project_apart
from .rank_augmented_attention import rank_augmented_attention, rotate_pairs, rotation_tables
from .recomputed import recomputed
from .relational_attention import relational_attention
from .route_blocks import route_blocks
from .routed_attention import region_pairs, route_regions, routed_attention, routed_self_attention
from .strip_conv import strip_conv
from .stripe_attention import stripe_attention
from .subspace_scores import channel_moments, prefer_subspace_scores, residual_gate, subspace_attention, subspace_scores
from .summed_attention import summed_attention
from .window_attention import merge_windows, partition_windows, relative_position_bias, window_attention

__all__ = [
    "BlockMap",
    "Blocks",
    "Packing",
    "Windows",
    "attention",
    "axis_attention",
    "axis_gate",
    "axis_pools",
    "balanced_bisection",
    "bidirectional_wkv",
    "block_sparse_attention",
    "channel_attention",
    "channel_moments",
    "cluster_attention",
    "cross_gate",
    "cross_merge",
    "cross_scan",
    "ema_kernel",
    "explain",
    "focused_attention",
    "focused_features",
    "gated_scan",
    "halo_attention",
    "hilbert_order",
    "interpolate_kernel",
    "large_kernel_conv",
    "linear_recurrence",
    "map_pools",
    "masked_attention",
    "max_first",
    "memory_format",
    "memory_scan",
    "merge_windows",
    "mixture_attention",
    "mixture_weights",
    "moving_average",
    "nested_attention",
    "nested_gate",
    "nhwc_conv",
    "nhwc_upconv",
    "pack_tokens",
    "packed_attention",
    "pair_mask",
    "partition_windows",
    "plane_conv",
    "polynomial_attention",
    "prefer_moments",
    "prefer_subspace_scores",
    "project_apart",
    "projected_channel_attention",
    "rank_augmented_attention",
    "recomputed",
    "region_pairs",
    "relational_attention",
    "relative_position_bias",
    "residual_gate",
    "rotate_pairs",
    "rotation_tables",
    "route_blocks",
    "route_regions",
    "routed_attention",
    "routed_self_attention",
    "score_gate",
    "strip_conv",
    "stripe_attention",
    "subspace_attention",
    "subspace_scores",
    "summed_attention",
    "toeplitz_matrix",
    "use_backend",
    "widened",
    "window_attention",
]
