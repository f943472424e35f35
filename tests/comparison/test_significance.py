"""Verdicts of a comparison: only what neither the seeds nor the test pictures explain is called a difference."""

import math

import numpy as np
import pytest

from visionattn.comparison.significance import compare, seed_noise

PICTURES = 10_000


def right(*shares):
    """Which of the pictures are right for each seed: the first `share` of them."""
    return np.stack([np.arange(PICTURES) < round(share * PICTURES) for share in shares])


def test_equal_networks_do_not_differ():
    difference = compare(right(0.9, 0.91), right(0.9, 0.91))
    assert (difference.mean, difference.seeds, difference.pictures) == (0, (0, 0), (0, 0))
    assert difference.verdict == "noise"


@pytest.mark.parametrize(("sign", "verdict"), [(1, "better"), (-1, "worse")])
def test_a_steady_difference_is_told(sign, verdict):
    ours, baseline = right(0.92, 0.93, 0.94), right(0.90, 0.91, 0.921)
    difference = compare(ours, baseline) if sign > 0 else compare(baseline, ours)
    assert difference.verdict == verdict
    assert difference.mean == pytest.approx(sign * 0.059 / 3)


def test_the_interval_of_the_seeds_is_students():
    difference = compare(right(0.91, 0.92, 0.93), right(0.9, 0.9, 0.9))
    half = 4.302653 * 0.01 / math.sqrt(3)
    assert difference.seeds == pytest.approx((0.02 - half, 0.02 + half), abs=1e-6)
    # Twice as good on average as it varies, which three seeds do not prove.
    assert difference.verdict == "noise"


def test_the_interval_of_the_pictures_is_that_of_a_mean():
    generator = np.random.default_rng(0)
    ours, baseline = generator.random((2, 3, PICTURES)) < 0.8
    difference = compare(ours, baseline)
    gains = (ours.astype(int) - baseline).mean(0)
    half = 1.96 * gains.std() / math.sqrt(PICTURES)
    assert difference.pictures == pytest.approx((gains.mean() - half, gains.mean() + half), abs=0.03 * half)


def test_few_pictures_prove_nothing():
    """All seeds agree, on three pictures of 10,000."""
    baseline = right(0.9, 0.9, 0.9)
    ours = baseline.copy()
    ours[:, -2:] = True
    difference = compare(ours, baseline)
    assert difference.seeds[0] > 0 and difference.pictures[0] <= 0
    assert difference.verdict == "noise"


def test_one_seed_gives_no_verdict():
    difference = compare(right(0.95), right(0.9))
    assert difference.seeds is None and difference.verdict == "one seed"
    assert difference.pictures[0] > 0.04


def test_pictures_must_be_the_same():
    with pytest.raises(ValueError, match=r"one shape, got \(1, 10000\) and \(2, 10000\)"):
        compare(right(0.9), right(0.9, 0.9))


def test_noise_is_pooled_over_the_networks():
    assert seed_noise([[0.1, 0.3], [0.5, 0.5]]) == pytest.approx(0.1)
    assert seed_noise([[0.1], [0.5]]) is None
