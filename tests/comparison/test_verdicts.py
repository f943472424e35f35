"""Verdicts of the diagnostics: intervals that hold as often as they say, and a power that is what was planned."""

import math

import numpy as np
import pytest

from visionattn.comparison.diagnostics.verdicts import judge, plan_seeds, shrink_variances

ROWS, SEEDS, SCENES = 20, 3, 2000


def runs(rng, shares, seed_sd):
    """Hits of rows `(rows, seeds, scenes)` whose shares vary from seed to seed."""
    own = np.array(shares)[:, None, None] + rng.normal(0, seed_sd, (len(shares), SEEDS, 1))
    return rng.random((len(shares), SEEDS, SCENES)) < own.clip(0, 1)


def judged(rng, shares, seed_sd):
    hits = runs(rng, [0.8, *shares], seed_sd)
    return judge({f"row{at}": own for at, own in enumerate(hits[1:])}, hits[0], SEEDS)


def test_equal_rows_are_told_apart_in_few_of_a_hundred_tables():
    rng = np.random.default_rng(0)
    wrong = sum(any(v.word != "not told apart" for v in judged(rng, [0.8] * ROWS, 0.01).values()) for _ in range(200))
    # All rows share the seeds of their baseline, so that their errors come together.
    assert wrong <= 16


def test_a_large_difference_is_told_and_named_by_its_sign():
    found = judged(np.random.default_rng(1), [0.9, 0.7, 0.8], 0.005)
    assert [found[f"row{at}"].word for at in range(2)] == ["better", "worse"]
    assert found["row0"].difference == pytest.approx(0.1, abs=0.02)
    assert found["row0"].effect == pytest.approx(2 * (math.asin(0.9**0.5) - math.asin(0.8**0.5)), abs=0.05)


def test_rows_with_few_seeds_have_no_verdict():
    hits = runs(np.random.default_rng(2), [0.5, 0.9, 0.9], 0.0)
    found = judge({"one": hits[1][:1], "two": hits[2][:2]}, hits[0], 3)
    assert [v.word for v in found.values()] == ["unfinished", "unfinished"]
    assert math.isinf(found["one"].half)
    assert judge({"two": hits[2][:2]}, hits[0], 2)["two"].word == "better"


def test_variances_that_agree_are_pooled_and_others_are_not():
    rng = np.random.default_rng(3)
    alike = rng.chisquare(2, 2000) / 2 * 4e-4
    spread = shrink_variances([*alike], [2] * len(alike))
    assert spread.variance == pytest.approx(4e-4, rel=0.1) and spread.freedom > 20
    apart = alike * rng.choice([0.1, 10], len(alike))
    assert shrink_variances([*apart], [2] * len(apart)).freedom < 5
    variance, freedom = shrink_variances([*apart], [2] * len(apart)).of(1e-2, 2)
    assert 4e-4 < variance < 1e-2 and freedom < 7


def test_planned_seeds_tell_the_difference_as_often_as_promised():
    """Four of five, in a simulation with the spread that was planned with."""
    seeds = plan_seeds(0.008**2, 0.2, 5000, 1, 0.015)
    assert seeds is not None
    rng = np.random.default_rng(4)
    told = 0
    for _ in range(300):
        gain = 0.015 + rng.normal(0, 0.008, (seeds, 1)) + np.zeros((seeds, 5000))
        # Gains of a scene: one tenth is shared by all seeds.
        shared = rng.choice([1, 0, -1], (1, 5000), p=[0.05, 0.9, 0.05])
        own = rng.choice([1, 0, -1], (seeds, 5000), p=[0.05, 0.9, 0.05])
        means = (gain + shared + own).mean(1)
        error = math.sqrt(0.008**2 / seeds + (0.1 / seeds + 0.1) / 5000)
        told += abs(means.mean()) > 1.96 * error
    assert told / 300 == pytest.approx(0.85, abs=0.1)
    assert plan_seeds(0.0, 0.5, 100, 40, 0.015) is None


def test_other_scenes_are_refused():
    with pytest.raises(ValueError, match="row has results of shape"):
        judge({"row": np.ones((2, 5), bool)}, np.ones((2, 6), bool), 2)
