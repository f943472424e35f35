"""Blocks for CNN feature maps, `(B, C, H, W) -> (B, C, H, W)`: one paper a file.

Every block takes the number of channels first and everything else by name, so timm's own door works too:
`timm.create_model('resnet50', block_args=dict(attn_layer=visionattn.plugins.CBAM))`.
"""

from ._registry import PLUGINS, list_plugins, resolve_plugin, timm_layer
from .attach import attach
from .bam import BAM
from .bmta import BalancedMultiTaskAttention
from .cbam import CBAM
from .coord import CoordinateAttention
from .ela import EfficientLocalAttention, ela_b, ela_l, ela_s, ela_t
from .pkcam import PKCAM
from .triplet import TripletAttention
from .ulsam import ULSAM

__all__ = [
    "BAM",
    "CBAM",
    "PKCAM",
    "PLUGINS",
    "ULSAM",
    "BalancedMultiTaskAttention",
    "CoordinateAttention",
    "EfficientLocalAttention",
    "TripletAttention",
    "attach",
    "ela_b",
    "ela_l",
    "ela_s",
    "ela_t",
    "list_plugins",
    "resolve_plugin",
    "timm_layer",
]
