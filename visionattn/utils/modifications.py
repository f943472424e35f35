"""What was done to a network after it was built, noted on it as plain data so that it can be done again."""

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
