"""Whether two networks differ by more than chance: chance of the seeds and chance of the test pictures."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

__all__ = ["Difference", "compare", "seed_noise"]

CONFIDENCE = 0.95
_RESAMPLINGS = 20_000


@dataclass(frozen=True)
class Difference:
    """How much more of the test set a network gets right than its baseline, in shares of it.

    Args:
        mean: Over the seeds.
        seeds: Interval of the mean difference were other seeds drawn: Student's t over the differences at equal seeds.
            None with a single seed.
        pictures: Interval of the mean difference of these very weights were other test pictures drawn: a paired
            bootstrap over the pictures.
    """

    mean: float
    seeds: tuple[float, float] | None
    pictures: tuple[float, float]

    @property
    def verdict(self) -> str:
        """`better` or `worse` where neither interval holds zero, `noise` otherwise; `one seed` where that is all."""
        if self.seeds is None:
            return "one seed"
        for name, sign in (("better", 1), ("worse", -1)):
            if all(sign * end > 0 for interval in (self.seeds, self.pictures) for end in interval):
                return name
        return "noise"


def compare(ours: np.ndarray, baseline: np.ndarray) -> Difference:
    """The difference between two networks that were trained with the same seeds and tested on the same pictures.

    Args:
        ours: Which pictures are right, `(seeds, pictures)` of booleans.
        baseline: The same of the baseline.

    Raises:
        ValueError: If the shapes differ.
    """
    if ours.shape != baseline.shape or ours.ndim != 2:
        raise ValueError(f"need two arrays (seeds, pictures) of one shape, got {ours.shape} and {baseline.shape}")
    gains = ours.astype(int) - baseline.astype(int)
    by_seed = gains.mean(1)
    count = len(by_seed)
    seeds = None
    if count > 1:
        half = student.ppf((1 + CONFIDENCE) / 2, count - 1) * by_seed.std(ddof=1) / math.sqrt(count)
        seeds = (float(by_seed.mean() - half), float(by_seed.mean() + half))
    return Difference(float(gains.mean()), seeds, _bootstrap(gains.sum(0), count))


def seed_noise(accuracies: Sequence[Sequence[float]]) -> float | None:
    """Standard deviation between seeds of one network, pooled over the networks; none with a single seed.

    Args:
        accuracies: One sequence over the seeds for each network.
    """
    variances = [statistics.variance(row) for row in accuracies if len(row) > 1]
    return math.sqrt(statistics.mean(variances)) if variances else None


def _bootstrap(gains: np.ndarray, seeds: int) -> tuple[float, float]:
    """Interval of the mean of `gains / seeds` over pictures drawn with replacement.

    Only how often each value is drawn matters, and that is multinomial.
    """
    values, counts = np.unique(gains, return_counts=True)
    drawn = np.random.default_rng(0).multinomial(len(gains), counts / len(gains), size=_RESAMPLINGS)
    means = drawn @ values / (len(gains) * seeds)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
