"""Shuffling and augmentation as a function of (seed, epoch, sample): a resumed run repeats an uninterrupted one."""

from collections.abc import Iterator

import numpy as np
from mmengine.dataset import DefaultSampler
from mmengine.registry import DATA_SAMPLERS

__all__ = ["SeededIndex", "SeededSampler"]


class SeededIndex(int):
    """The index of a sample that also carries the seed of its augmentation. It is a plain int otherwise.

    mmengine's joined data sets subtract what stands before a part, or take the remainder: the seed stays.
    """

    seed: int

    def __new__(cls, index: int, seed: int) -> "SeededIndex":
        self = super().__new__(cls, index)
        self.seed = seed
        return self

    def __sub__(self, other: int) -> "SeededIndex":
        return SeededIndex(int(self) - int(other), self.seed)

    def __mod__(self, other: int) -> "SeededIndex":
        return SeededIndex(int(self) % int(other), self.seed)

    def __reduce__(self) -> tuple[type, tuple[int, int]]:
        return SeededIndex, (int(self), self.seed)


@DATA_SAMPLERS.register_module()
class SeededSampler(DefaultSampler):
    """mmengine's sampler with indices that carry a seed drawn from (run's seed, epoch, index).

    The number of workers and processes does not change how a sample is augmented.
    """

    def __iter__(self) -> Iterator[SeededIndex]:
        seeds = np.random.SeedSequence((self.seed, self.epoch)).generate_state(len(self.dataset))
        return (SeededIndex(index, int(seeds[index])) for index in super().__iter__())
