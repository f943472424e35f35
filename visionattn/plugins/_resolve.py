"""Finding a plug-in by name, class or config."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from visionattn import catalog

__all__ = ["list_plugins", "resolve_plugin", "timm_layer"]


def list_plugins() -> list[str]:
    """Names of all plug-ins whose only input is a map."""
    return [card.name for card in catalog.cards("plugin") if card.standalone]


def resolve_plugin(plugin: str | dict[str, Any] | Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """The constructor for a plug-in's name, config or class; call it with the number of channels.

    Args:
        plugin: A name of `list_plugins()`, a class, or a dict with `type` (either of these) and further arguments.

    Raises:
        ValueError: If the name is unknown, or of a plug-in that needs more than a map.
        TypeError: If a dict has no `type`, or `plugin` is neither of the three.
    """
    return catalog.resolve("plugin", plugin)


def timm_layer(plugin: str | dict[str, Any] | Callable[..., nn.Module], **kwargs: Any) -> Callable[..., nn.Module]:
    """A plug-in for timm's builders that pass their activation on: `se_layer=timm_layer('cbam')` of EfficientNet.

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
