"""What the numbers of the diagnostics carry: paired differences, their uncertainty, and the power to tell them.

A difference between two rows on a task has two sources of chance. Seeds: its variance over the seeds, of which three
tell little, is drawn towards that of the other rows of the task as far as they agree (empirical Bayes, Smyth 2004,
doi:10.2202/1544-6115.1027). Test scenes: the variance of the gain over the scenes, all of which both rows saw.
Intervals hold for all rows of a task at once (Bonferroni).
"""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import brentq
from scipy.special import digamma, polygamma
from scipy.stats import norm
from scipy.stats import t as student

from visionattn.utils.files import replacing

__all__ = ["Spread", "Verdict", "export_verdicts", "judge", "plan_seeds", "shrink_variances"]

CONFIDENCE = 0.95
POWER = 0.8


@dataclass(frozen=True)
class Spread:
    """What the rows of a task tell about the variance of a difference between seeds.

    Args:
        variance: That of a typical row, in squared shares.
        freedom: How many degrees of freedom it is worth beside a row's own; infinite where rows agree.
    """

    variance: float
    freedom: float

    def of(self, own: float, freedom: int) -> tuple[float, float]:
        """The variance of a row, from its own and the others', and its degrees of freedom."""
        if math.isinf(self.freedom):
            return self.variance, math.inf
        total = self.freedom + freedom
        return (self.freedom * self.variance + freedom * own) / total, total


@dataclass(frozen=True)
class Verdict:
    """How a row compares with its baseline on a task, in shares of the test scenes.

    Args:
        difference: Mean over the seeds.
        half: Half of its simultaneous interval: what is within cannot be told from it.
        effect: Cohen's h, the difference of the arcsines; 0.2 is called small, 0.5 medium, 0.8 large.
        seeds: How many seeds it rests on.
        planned: How many it should.
    """

    difference: float
    half: float
    effect: float
    seeds: int
    planned: int

    @property
    def word(self) -> str:
        """`better`, `worse` or `not told apart`; `unfinished` with fewer seeds than planned or only one."""
        if self.seeds < max(self.planned, 2):
            return "unfinished"
        if abs(self.difference) <= self.half:
            return "not told apart"
        return "better" if self.difference > 0 else "worse"


def judge(ours: Mapping[str, np.ndarray], baseline: np.ndarray, planned: int) -> dict[str, Verdict]:
    """The verdicts of all rows of a host on one task.

    Args:
        ours: For each row which scenes are right, `(seeds, scenes)` of booleans, of the first seeds in order.
        baseline: The same of the baseline, with at least as many seeds as any row.
        planned: Seeds of a finished row.

    Raises:
        ValueError: If a row has more seeds than the baseline, or other scenes.
    """
    gains = {}
    for name, hits in ours.items():
        if hits.ndim != 2 or len(hits) > len(baseline) or hits.shape[1:] != baseline.shape[1:]:
            raise ValueError(f"{name} has results of shape {hits.shape}, its baseline of {baseline.shape}")
        gains[name] = hits.astype(np.int8) - baseline[: len(hits)].astype(np.int8)
    variances = {name: float(gain.mean(1).var(ddof=1)) for name, gain in gains.items() if len(gain) > 1}
    spread = shrink_variances(list(variances.values()), [len(gains[name]) - 1 for name in variances])
    found = {}
    for name, gain in gains.items():
        seeds, scenes = gain.shape
        half = math.inf
        if name in variances:
            variance, freedom = spread.of(variances[name], seeds - 1)
            error = math.sqrt(variance / seeds + float(gain.mean(0).var(ddof=1)) / scenes)
            half = float(_quantile(1 - (1 - CONFIDENCE) / (2 * len(gains)), freedom)) * error
        shares = ours[name].mean(), baseline[:seeds].mean()
        effect = 2 * (math.asin(math.sqrt(shares[0])) - math.asin(math.sqrt(shares[1])))
        found[name] = Verdict(float(gain.mean()), half, effect, seeds, planned)
    return found


def export_verdicts(verdicts: Mapping[str, Mapping[str, Verdict]], baselines: Mapping[str, str], path: Path) -> None:
    """Writes a table with a line for each row and task, in shares.

    Args:
        verdicts: Task -> row -> verdict.
        baselines: What each row is compared with.
        path: A `.csv` file.
    """
    names = ("row", "task", "baseline", "difference", "half", "effect", "seeds", "planned", "verdict")
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        for row, baseline in baselines.items():
            for task, own in verdicts.items():
                if (one := own.get(row)) is not None:
                    numbers = (f"{number:.5f}" for number in (one.difference, one.half, one.effect))
                    writer.writerow([row, task, baseline, *numbers, one.seeds, one.planned, one.word])


def shrink_variances(variances: Sequence[float], freedoms: Sequence[int]) -> Spread:
    """The typical variance and how far rows agree on it, from the moments of the logarithms of their variances.

    Args:
        variances: Of each row.
        freedoms: Degrees of freedom of each.
    """
    if not variances:
        return Spread(0.0, math.inf)
    # Two seeds can agree by chance to the last scene; a variance of zero has no logarithm.
    own, half = np.maximum(variances, 1e-8), np.array(freedoms) / 2
    logs = np.log(own) - digamma(half) + np.log(half)
    if len(logs) < 3:
        return Spread(float(np.mean(own)), math.inf)
    excess = float(logs.var(ddof=1) - polygamma(1, half).mean())
    if excess <= polygamma(1, 1e4):
        return Spread(float(np.average(own, weights=half)), math.inf)
    prior = brentq(lambda x: polygamma(1, x) - excess, 1e-3, 1e4)
    return Spread(float(np.exp(logs.mean() + digamma(prior) - np.log(prior))), 2 * prior)


def plan_seeds(seed_variance: float, scene_variance: float, scenes: int, rows: int, difference: float) -> int | None:
    """How many seeds tell a difference in four of five cases; none if no number of seeds does with so few scenes.

    Args:
        seed_variance: Of a difference between seeds.
        scene_variance: Of the gain of a scene, of one seed: at most the share of scenes that two rows differ on.
        scenes: Test scenes.
        rows: Rows that are compared at once.
        difference: What is to be told, in shares.
    """
    wanted = float(norm.ppf(1 - (1 - CONFIDENCE) / (2 * rows)) + norm.ppf(POWER))
    room = (difference / wanted) ** 2
    # The part of the variance over the scenes that more seeds do not average away is taken as half.
    left = room - scene_variance / 2 / scenes
    return None if left <= 0 else max(2, math.ceil((seed_variance + scene_variance / 2 / scenes) / left))


def _quantile(share: float, freedom: float) -> float:
    return norm.ppf(share) if math.isinf(freedom) else student.ppf(share, freedom)
