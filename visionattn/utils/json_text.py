"""Strict JSON, with null in place of NaN and infinity."""

import json
import math
from typing import Any

__all__ = ["plain", "to_json"]


def plain(value: Any) -> Any:
    """Converts dicts, lists, numbers, text, arrays and tensors to JSON-compatible values.

    Arrays and tensors become lists or numbers; numbers that are not finite become None.
    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_json(value: Any, indent: int | None = None) -> str:
    """The JSON text of such a value."""
    return json.dumps(plain(value), indent=indent, allow_nan=False)
