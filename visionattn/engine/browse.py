"""Draws the inputs that a config's data pipeline gives the network."""

import numpy as np
from mmengine.config import Config

from visionattn.visualization.predictions import draw_grid
from visionattn.visualization.samples import draw_sample

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
    indices = [index for index, _ in zip(loader.sampler, range(count), strict=False)]
    return draw_grid([draw_sample(dataset[index], dataset.metainfo) for index in indices], columns)
