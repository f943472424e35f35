"""Where a network looks: attention of any network captured, placed in the image and turned into maps."""

from .cams import CAMS, cam, cam_layer
from .capture import capture
from .draw import grid, overlay
from .gating import gates
from .layer import Layer
from .maps import min_max, raw, rollout, rollout_matrix, spatial_layers, upsample
from .offers import methods
from .positions import Places, Positions
from .record import Record
from .relevance import attention_grad_cam, relevance, relevance_matrix
from .tokens import Tokens, tokens

__all__ = [
    "CAMS",
    "Layer",
    "Places",
    "Positions",
    "Record",
    "Tokens",
    "attention_grad_cam",
    "cam",
    "cam_layer",
    "capture",
    "gates",
    "grid",
    "methods",
    "min_max",
    "overlay",
    "raw",
    "relevance",
    "relevance_matrix",
    "rollout",
    "rollout_matrix",
    "spatial_layers",
    "tokens",
    "upsample",
]
