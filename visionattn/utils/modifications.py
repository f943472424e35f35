"""Records modifications of a network as plain data on it, so that they can be repeated."""

from typing import Any

from torch import nn

__all__ = ["record_modification"]


def record_modification(model: nn.Module, kind: str, arguments: dict[str, Any]) -> None:
    """Appends to `model.modifications`, a list of `{"kind": ..., "arguments": ...}`.

    Args:
        model: The network.
        kind: What was done, such as `attach`.
        arguments: How: names, numbers and lists or dicts of them.
    """
    vars(model)["modifications"] = [*getattr(model, "modifications", ()), {"kind": kind, "arguments": arguments}]
