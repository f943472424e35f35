"""Batches: stacked for classification, kept apart where pictures have different sizes and numbers of objects."""

from collections.abc import Sequence
from typing import Any

from mmengine.dataset import default_collate
from mmengine.registry import FUNCTIONS

__all__ = ["list_collate", "stack_collate"]


@FUNCTIONS.register_module()
def list_collate(samples: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """Keeps the samples of a batch apart: `{'inputs': [tensor, ...], 'data_samples': [dict, ...]}`."""
    return {name: [sample[name] for sample in samples] for name in samples[0]}


@FUNCTIONS.register_module()
def stack_collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Stacks the samples of a batch: `{'inputs': (B, 3, H, W), 'data_samples': {'label': (B,), ...}}`.

    Raises:
        ValueError: If the pictures have different sizes.
    """
    sizes = sorted({tuple(sample["inputs"].shape[1:]) for sample in samples})
    if len(sizes) > 1:
        raise ValueError(
            f"the pictures of a batch have different sizes, {', '.join(f'{w}x{h}' for h, w in sizes[:4])}: end the "
            "pipeline with a Resize or a crop, or use batches of one"
        )
    return default_collate(samples)
