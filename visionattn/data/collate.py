"""Batches of pictures of different sizes, with different numbers of objects."""

from collections.abc import Sequence
from typing import Any

from mmengine.registry import FUNCTIONS

__all__ = ["list_collate"]


@FUNCTIONS.register_module()
def list_collate(samples: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """Keeps the samples of a batch apart: `{'inputs': [tensor, ...], 'data_samples': [dict, ...]}`."""
    return {name: [sample[name] for sample in samples] for name in samples[0]}
