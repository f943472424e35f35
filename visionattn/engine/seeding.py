"""Makes randomness in a training step (dropout, drop path, mixup) a function of (seed, rank, iteration)."""

import random
from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

__all__ = ["StepSeedHook"]


@HOOKS.register_module()
class StepSeedHook(Hook):
    """Seeds Python's, NumPy's and PyTorch's generators before every step: a resumed run draws the same numbers."""

    priority = "VERY_HIGH"

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Seeds the step about to run."""
        state = np.random.SeedSequence((runner.seed, runner.rank, runner.iter)).generate_state(2)
        random.seed(int(state[0]))
        np.random.seed(int(state[0]))
        torch.manual_seed((int(state[0]) << 32) | int(state[1]) >> 1)
