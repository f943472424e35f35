"""Where a network looks: captures the attention of any network, locates it in the image and turns it into maps."""

from .attributions import ATTRIBUTIONS, attribution
from .cams import CAMS, cam, cam_layer
from .capture import capture
from .clip import EmbeddingTerms, decompose_embedding
from .counterfactual import counterfactual, counterfactual_saliency
from .dense import BoxScores, RegionScores
from .describe import describe
from .dope import axial_rope, denoise_rope, low_bands, rope_band_entropy, rope_truncated_rank, unrotate
from .draw import as_seen, figure, grid, overlay
from .draw_heads import heads_figure
from .faithfulness import deletion_insertion
from .gating import gates, mixer_weights, spatial_gates
from .head_table import HeadTable
from .heads import ablation, gate_gradients, head_importance, local_mass, ring_profile
from .interventions import edit, filter_sinks, knock_out, redistribute_sinks, scale_heads, steer
from .joint_embedding import JointEmbedding, joint_embedding
from .layer import Layer
from .lrp import lrp
from .maps import min_max, raw, rollout, rollout_matrix, spatial_layers, upsample
from .masked import masked_features, masked_forward, reclassify
from .metrics import MeanScores, attention_iou, mask_score, mass_in_mask, pointing_game, segmentation_scores
from .offers import methods
from .patterns import head_patterns
from .positions import Places, Positions
from .prompting import prompt_image, prompt_mask, text_guided_mask
from .pruning import prune_heads
from .record import Record
from .regions import knock_out_regions, reencode, region_attention
from .registers import find_register_neurons, test_time_registers
from .relevance import attention_grad_cam, relevance, relevance_matrix
from .roles import RelationScores, position_preference, relation_scores, salient_operations
from .rope_bases import RopeBases
from .saliency import context_saliency, salient_relevance
from .signals import ScoreTerms, score_terms
from .spectra import causal_laplacian, effective_rank, laplacian_spectrum
from .ssm import hidden_attention
from .statistics import AttentionStatistics, attention_statistics, statistics
from .text_span import TextSpan, text_span
from .tokens import Tokens, tokens
from .towers import open_clip_model, open_clip_tower
from .viewer import page

__all__ = [
    "ATTRIBUTIONS",
    "CAMS",
    "AttentionStatistics",
    "BoxScores",
    "EmbeddingTerms",
    "HeadTable",
    "JointEmbedding",
    "Layer",
    "MeanScores",
    "Places",
    "Positions",
    "Record",
    "RegionScores",
    "RelationScores",
    "RopeBases",
    "ScoreTerms",
    "TextSpan",
    "Tokens",
    "ablation",
    "as_seen",
    "attention_grad_cam",
    "attention_iou",
    "attention_statistics",
    "attribution",
    "axial_rope",
    "cam",
    "cam_layer",
    "capture",
    "causal_laplacian",
    "context_saliency",
    "counterfactual",
    "counterfactual_saliency",
    "decompose_embedding",
    "deletion_insertion",
    "denoise_rope",
    "describe",
    "edit",
    "effective_rank",
    "figure",
    "filter_sinks",
    "find_register_neurons",
    "gate_gradients",
    "gates",
    "grid",
    "head_importance",
    "head_patterns",
    "heads_figure",
    "hidden_attention",
    "joint_embedding",
    "knock_out",
    "knock_out_regions",
    "laplacian_spectrum",
    "local_mass",
    "low_bands",
    "lrp",
    "mask_score",
    "masked_features",
    "masked_forward",
    "mass_in_mask",
    "methods",
    "min_max",
    "mixer_weights",
    "open_clip_model",
    "open_clip_tower",
    "overlay",
    "page",
    "pointing_game",
    "position_preference",
    "prompt_image",
    "prompt_mask",
    "prune_heads",
    "raw",
    "reclassify",
    "redistribute_sinks",
    "reencode",
    "region_attention",
    "relation_scores",
    "relevance",
    "relevance_matrix",
    "ring_profile",
    "rollout",
    "rollout_matrix",
    "rope_band_entropy",
    "rope_truncated_rank",
    "salient_operations",
    "salient_relevance",
    "scale_heads",
    "score_terms",
    "segmentation_scores",
    "spatial_gates",
    "spatial_layers",
    "statistics",
    "steer",
    "test_time_registers",
    "text_guided_mask",
    "text_span",
    "tokens",
    "unrotate",
    "upsample",
]
