"""What a config's data pipeline feeds the network, as a picture."""

from typing import Any

import numpy as np
from mmengine.config import Config

from visionattn.visualization.predictions import draw_classification, draw_detections, draw_grid, draw_segmentation

from .runner import Runner

__all__ = ["draw_samples"]


def draw_samples(config: Config, split: str, count: int, columns: int = 4) -> np.ndarray:
    """Draws the first samples of the first epoch, augmented as in the run.

    Args:
        config: A config of a run.
        split: `train`, `val` or `test`.
        count: How many samples, as far as there are that many.
        columns: How many stand in a row.

    Returns:
        The picture, `(H, W, 3)` uint8.
    """
    loader = Runner.build_dataloader(config[f"{split}_dataloader"], seed=config.get("randomness", {}).get("seed", 0))
    dataset = loader.dataset
    pictures = []
    for index, _ in zip(loader.sampler, range(count), strict=False):
        sample = dataset[index]
        kind = next(key for key in _DRAW if key in sample["data_samples"])
        image = sample["inputs"].permute(1, 2, 0).contiguous().numpy()
        pictures.append(_DRAW[kind](image, sample["data_samples"], dataset.metainfo))
    return draw_grid(pictures, columns)


def _detection(image: np.ndarray, sample: dict[str, Any], meta: dict[str, Any]) -> np.ndarray:
    return draw_detections(image, sample["boxes"], sample["labels"], None, sample.get("masks"), meta["classes"])


def _segmentation(image: np.ndarray, sample: dict[str, Any], meta: dict[str, Any]) -> np.ndarray:
    return draw_segmentation(image, sample["mask"], meta["classes"], meta.get("palette"))


def _classification(image: np.ndarray, sample: dict[str, Any], meta: dict[str, Any]) -> np.ndarray:
    return draw_classification(image, meta["classes"][sample["label"]])


_DRAW = {"boxes": _detection, "mask": _segmentation, "label": _classification}
