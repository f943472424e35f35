"""Blocks for CNN feature maps, `(B, C, H, W) -> (B, C, H, W)`: one paper a file.

Every block takes the number of channels first and everything else by name, so timm's `attn_layer` takes it as well:
`timm.create_model('resnet50', block_args=dict(attn_layer=visionattn.plugins.CBAM))`.
"""

from typing import Any

from visionattn.utils.exports import find_export, list_exports

from ._resolve import list_plugins as list_plugins
from ._resolve import resolve_plugin as resolve_plugin
from ._resolve import timm_layer as timm_layer
from .attach import attach as attach


def __getattr__(name: str) -> Any:
    """The blocks, each imported from the module of its paper, and `__all__`."""
    return __dir__() if name == "__all__" else find_export(__name__, name)


def __dir__() -> list[str]:
    return sorted({"attach", "list_plugins", "resolve_plugin", "timm_layer", *list_exports(__name__)})
