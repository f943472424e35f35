"""Repeats the modifications of a network that its published file lists."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from visionattn.mixers import insert_context_broadcast, replace_attention
from visionattn.plugins import attach

__all__ = ["MODIFICATIONS", "apply_modifications"]

# Kind, as `record_modification` notes it -> what does it; called with the network and the noted arguments.
MODIFICATIONS: dict[str, Callable[..., nn.Module]] = {
    "attach": attach,
    "replace_attention": replace_attention,
    "insert_context_broadcast": insert_context_broadcast,
}


def apply_modifications(model: nn.Module, modifications: Iterable[dict[str, Any]]) -> nn.Module:
    """Applies to a network, in order, the modifications that another one lists in `model.modifications`.

    Raises:
        ValueError: If a kind, or a name among its arguments, is unknown.
    """
    for modification in modifications:
        kind, arguments = modification.get("kind"), modification.get("arguments")
        if kind not in MODIFICATIONS or not isinstance(arguments, dict):
            raise ValueError(f"a modification's kind must be one of {', '.join(MODIFICATIONS)}, got {modification}")
        try:
            model = MODIFICATIONS[kind](model, **arguments)
        except TypeError as error:
            raise ValueError(f"cannot repeat {kind}({arguments}): {error}") from error
    return model
