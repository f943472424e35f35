"""Blocks for CNN feature maps, `(B, C, H, W) -> (B, C, H, W)`: one paper a file.

Every block takes the number of channels first and everything else by name, so timm's own door works too:
`timm.create_model('resnet50', block_args=dict(attn_layer=visionattn.plugins.CBAM))`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

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
    "resolve_plugin",
]

PLUGINS: dict[str, Callable[..., nn.Module]] = {
    "bam": BAM,
    "bmta": BalancedMultiTaskAttention,
    "cbam": CBAM,
    "coord": CoordinateAttention,
    "ela_b": ela_b,
    "ela_l": ela_l,
    "ela_s": ela_s,
    "ela_t": ela_t,
    "triplet": TripletAttention,
    "ulsam": ULSAM,
}


def resolve_plugin(plugin: str | dict[str, Any] | Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Gives the constructor behind a plug-in's name, config or class; call it with the number of channels.

    Args:
        plugin: A name in `PLUGINS`, a class, or a dict with `type` (either of these) and further arguments.

    Raises:
        ValueError: If the name is unknown.
        TypeError: If a dict has no `type`, or `plugin` is neither of the three.
    """
    if isinstance(plugin, dict):
        if "type" not in plugin:
            raise TypeError(f"a plug-in's config needs a 'type', got {plugin}")
        arguments = {key: value for key, value in plugin.items() if key != "type"}
        return partial(resolve_plugin(plugin["type"]), **arguments)
    if isinstance(plugin, str):
        if plugin not in PLUGINS:
            raise ValueError(f"unknown plug-in {plugin!r}; there are: {', '.join(sorted(PLUGINS))}")
        return PLUGINS[plugin]
    if callable(plugin):
        return plugin
    raise TypeError(f"a plug-in is a name, a class or a dict, got {plugin!r}")
