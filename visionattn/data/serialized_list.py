"""Many small records in one block of memory."""

import pickle
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

__all__ = ["SerializedList"]


class SerializedList(Sequence):
    """A list shared by worker processes: reading an item writes nothing, so no process gets its own copy.

    Args:
        items: What to keep; it is pickled.
    """

    def __init__(self, items: Iterable[Any]) -> None:
        blocks = [pickle.dumps(item, protocol=pickle.HIGHEST_PROTOCOL) for item in items]
        self._ends = np.cumsum([0, *map(len, blocks)])
        self._content = np.frombuffer(b"".join(blocks), np.uint8)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> Any:  # type: ignore[override]  # no slices
        if not 0 <= index < len(self):
            raise IndexError(f"no item {index} of {len(self)}")
        return pickle.loads(self._content[self._ends[index] : self._ends[index + 1]].data)
