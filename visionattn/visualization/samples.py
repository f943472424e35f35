"""Draws samples of a data set: a network's input with its annotation."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from .predictions import draw_classification, draw_detections, draw_segmentation

__all__ = ["draw_sample"]


def draw_sample(sample: Mapping[str, Any], meta: Mapping[str, Any]) -> np.ndarray:
    """Draws a sample with its class, boxes and masks, or mask of classes.

    Args:
        sample: `inputs`, `(3, H, W)` uint8, and `data_samples` with `boxes` and `labels` (and `masks`), `mask` or
            `label`.
        meta: The data set's `metainfo`: `classes` and, if it has one, `palette`.

    Returns:
        The picture, `(H, W, 3)` uint8.
    """
    image = sample["inputs"].permute(1, 2, 0).contiguous().numpy()
    annotation, classes = sample["data_samples"], meta["classes"]
    if "boxes" in annotation:
        boxes, labels, masks = annotation["boxes"], annotation["labels"], annotation.get("masks")
        return draw_detections(image, boxes, labels, None, masks, classes)
    if "mask" in annotation:
        return draw_segmentation(image, annotation["mask"], classes, meta.get("palette"))
    label = int(annotation["label"])
    return draw_classification(image, classes[label], numbers=[label])
