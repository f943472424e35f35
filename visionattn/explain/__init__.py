"""Where a network looks: captures the attention of any network, locates it in the image and turns it into maps."""

from .cams import CAMS, cam, cam_layer
from .capture import capture
from .counterfactual import counterfactual, counterfactual_saliency
from .dense import BoxScores, RegionScores
from .dope import axial_rope, denoise_rope, low_bands, rope_band_entropy, rope_truncated_rank, unrotate
from .draw import as_seen, figure, grid, overlay
from .gating import gates
from .head_table import HeadTable
from .heads import ablation, gate_gradients, head_importance, ring_profile
from .interventions import edit, knock_out, redistribute_sinks, scale_heads
from .layer import Layer
from .maps import min_max, raw, rollout, rollout_matrix, spatial_layers, upsample
from .masked import masked_features, masked_forward
from .metrics import attention_iou, mask_score, mass_in_mask, pointing_game, segmentation_scores
from .offers import methods
from .positions import Places, Positions
from .record import Record
from .registers import find_register_neurons, test_time_registers
from .relevance import attention_grad_cam, relevance, relevance_matrix
from .spectra import causal_laplacian, effective_rank, laplacian_spectrum
from .statistics import AttentionStatistics, attention_statistics, statistics
from .tokens import Tokens, tokens
from .viewer import page

__all__ = [
    "CAMS",
    "AttentionStatistics",
    "BoxScores",
    "HeadTable",
    "Layer",
    "Places",
    "Positions",
    "Record",
    "RegionScores",
    "Tokens",
    "ablation",
    "as_seen",
    "attention_grad_cam",
    "attention_iou",
    "attention_statistics",
    "axial_rope",
    "cam",
    "cam_layer",
    "capture",
    "causal_laplacian",
    "counterfactual",
    "counterfactual_saliency",
    "denoise_rope",
    "edit",
    "effective_rank",
    "figure",
    "find_register_neurons",
    "gate_gradients",
    "gates",
    "grid",
    "head_importance",
    "knock_out",
    "laplacian_spectrum",
    "low_bands",
    "mask_score",
    "masked_features",
    "masked_forward",
    "mass_in_mask",
    "methods",
    "min_max",
    "overlay",
    "page",
    "pointing_game",
    "raw",
    "redistribute_sinks",
    "relevance",
    "relevance_matrix",
    "ring_profile",
    "rollout",
    "rollout_matrix",
    "rope_band_entropy",
    "rope_truncated_rank",
    "scale_heads",
    "segmentation_scores",
    "spatial_layers",
    "statistics",
    "test_time_registers",
    "tokens",
    "unrotate",
    "upsample",
]
