"""Finding a plug-in by name, class or config."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from .bam import BAM
from .bmta import BalancedMultiTaskAttention
from .cbam import CBAM
from .coord import CoordinateAttention
from .ela import ela_b, ela_l, ela_s, ela_t
from .triplet import TripletAttention
from .ulsam import ULSAM

__all__ = ["PLUGINS", "list_plugins", "resolve_plugin", "timm_layer"]

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


def list_plugins() -> list[str]:
    """Names of all plug-ins."""
    return sorted(PLUGINS)


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
    if callable(plugin) and not isinstance(plugin, nn.Module):
        return plugin
    raise TypeError(f"a plug-in is a name, a class or a dict, got {plugin!r}")


def timm_layer(plugin: str | dict[str, Any] | Callable[..., nn.Module], **kwargs: Any) -> Callable[..., nn.Module]:
    """A plug-in for timm's own builders that hand their activation on: `se_layer=timm_layer('cbam')` of EfficientNet.

    Where timm hands on nothing but device and dtype, as ResNet's `block_args=dict(attn_layer=CBAM)`, the class itself
    does as well.

    Args:
        plugin: As in `resolve_plugin`.
        **kwargs: For the plug-in.
    """
    build = partial(resolve_plugin(plugin), **kwargs)

    def layer(channels: int, *, act_layer: Any = None, **factory: Any) -> nn.Module:
        return build(channels, **factory)

    return layer
