"""Where a network looks: attention of any network captured, placed in the image and turned into maps."""

from .capture import capture
from .layer import Layer
from .maps import min_max, raw, rollout, rollout_matrix, upsample
from .positions import Places, Positions
from .record import Record
from .relevance import attention_grad_cam, relevance, relevance_matrix
from .tokens import Tokens, tokens

__all__ = [
    "Layer",
    "Places",
    "Positions",
    "Record",
    "Tokens",
    "attention_grad_cam",
    "capture",
    "min_max",
    "raw",
    "relevance",
    "relevance_matrix",
    "rollout",
    "rollout_matrix",
    "tokens",
    "upsample",
]
