"""A network with gates that take a second input."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from visionattn import catalog
from visionattn.utils.transparent import hide_child

from ._condition import ConditionedGate, given_condition, is_given

__all__ = ["Conditioned", "resolve_gate"]


class Conditioned(nn.Module):
    """A network called as `model(image, condition)`; its gates receive the condition, its layers the image.

    What is asked of it that it does not have is the network's: `num_classes`, `feature_info`, `pretrained_cfg`. The
    state dict has the network's own names.

    Args:
        network: A network whose gates take a condition: what `attach(..., condition=True)` made of one.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network: Any = network
        self.training = network.training
        hide_child(self, "network")

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "network":
                raise
            return getattr(self.network, name)

    def forward(self, image: torch.Tensor, condition: torch.Tensor | None = None, **kwargs: Any) -> Any:
        """The output of the network.

        Args:
            image: `(B, C, H, W)`.
            condition: Of each picture, as the gates take it: a sentence's embedding `(B, D)`, saliency `(B, S, h, w)`.
                It may be left out where `given_condition` gives it.
            **kwargs: For the network.

        Raises:
            ValueError: If the condition is missing, or does not fit or is not finite.
        """
        self._check(image, condition)
        with given_condition(condition):
            return self.network(image, **kwargs)

    def forward_features(self, image: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        """The last map, before pooling and classifier."""
        self._check(image, condition)
        with given_condition(condition):
            return self.network.forward_features(image)

    def forward_intermediates(self, image: torch.Tensor, condition: torch.Tensor | None = None, **kwargs: Any) -> Any:
        """The maps of the network, as timm's method of this name returns them."""
        self._check(image, condition)
        with given_condition(condition):
            return self.network.forward_intermediates(image, **kwargs)

    def _check(self, image: torch.Tensor, condition: torch.Tensor | None) -> None:
        if condition is None and not image.is_meta and not is_given():
            raise ValueError("condition is missing: call model(image, condition)")


def resolve_gate(plugin: str | dict[str, Any] | Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """The constructor of a plug-in with a second input, as a gate within a network; call it with the width of the map.

    Raises:
        ValueError: If the name is unknown, or the plug-in takes no condition.
        TypeError: As `resolve_plugin`.
    """
    kind: Any = plugin
    while isinstance(kind, dict) and "type" in kind:
        kind = kind["type"]
    entry = catalog.get("plugin", kind).constructor if isinstance(kind, str) else kind
    if isinstance(entry, type) and not hasattr(entry, "condition_name"):
        names = [c.name for c in catalog.cards("plugin") if hasattr(c.factory, "condition_name")]
        raise ValueError(f"condition=True needs a plug-in that takes one: {', '.join(names)}; got {kind!r}")
    arguments = {key: value for key, value in plugin.items() if key != "type"} if isinstance(plugin, dict) else {}
    build = catalog.resolve("plugin", entry)

    def gate(channels: int, **kwargs: Any) -> nn.Module:
        return ConditionedGate(build(channels, **{**arguments, **kwargs}))

    return gate
