"""The report of a comparison says what its numbers say, losses too."""

import csv
import dataclasses

import numpy as np
import pytest
from PIL import Image

from visionattn.comparison.report import write_report
from visionattn.comparison.results import Ratio, Result
from visionattn.comparison.significance import compare

SEEDS = (0, 1, 2)


def right(*shares):
    return np.stack([np.arange(10_000) < round(share * 10_000) for share in shares])


def row(network, shares, baseline=None, baseline_shares=(), time=1.0):
    curve = [(50, 2.0), (100, 1.0)]
    result = Result(f"{network}_config", network, 1000, 5_000_000, 40_000, tuple(shares), (curve,) * len(shares))
    if baseline is None:
        return result
    times = {mode: Ratio(time, 0.9 * time, 1.1 * time, (0.95, 1.05)) for mode in ("fwd", "f+b")}
    difference = compare(right(*shares), right(*baseline_shares))
    return dataclasses.replace(result, baseline=baseline, difference=difference, times=times)


@pytest.fixture
def results():
    plain = (0.900, 0.901, 0.902)
    baseline = row("va_plain", plain)
    return [
        baseline,
        row("va_good", (0.92, 0.921, 0.9222), baseline, plain, time=1.5),
        row("va_bad", (0.88, 0.881, 0.8822), baseline, plain, time=3.25),
        row("va_same", (0.9, 0.903, 0.901), baseline, plain, time=0.98),
    ]


def report(results, path, seeds=SEEDS):
    return write_report(results, seeds, path, title="A test", remarks=("Mind this.",), command="visionattn compare x")


def test_says_who_wins_loses_and_ties(results, tmp_path):
    text = report(results, tmp_path / "report.md")
    assert (tmp_path / "report.md").read_text() == text
    assert "- More accurate than the baseline: `va_good`.\n" in text
    assert "- Less accurate than the baseline: `va_bad`.\n" in text
    assert "- Not significantly different from the baseline: `va_same`.\n" in text
    assert "- Significant or not, 1 of 3 score less than the baseline, the lowest by 1.99 points.\n" in text
    assert "from 0.98 times (`va_same`) to 3.25 times (`va_bad`)" in text
    assert "- Mind this.\n" in text and "Made by `visionattn compare x`" in text
    rows = [line for line in text.splitlines() if line.startswith("| `va_")]
    assert [line.split("`")[1] for line in rows] == ["va_plain", "va_good", "va_bad", "va_same"]
    assert "| 90.10 ± 0.10 |" in rows[0] and "| baseline |" in rows[0]
    assert "| -1.99 (" in rows[2] and "| worse | 3.25 (2.93-3.58) |" in rows[2]


def test_leaves_numbers_and_pictures_beside_it(results, tmp_path):
    report(results, tmp_path / "report.md")
    rows = list(csv.DictReader((tmp_path / "report.csv").open()))
    assert [row["verdict"] for row in rows] == ["", "better", "worse", "noise"]
    assert [float(row["training_time"] or 1) for row in rows] == [1, 1.5, 3.25, 0.98]
    assert float(rows[1]["seed_2"]) == 0.9222 and rows[1]["baseline"] == "va_plain"
    assert float(rows[2]["images_high"]) < 0
    for name in ("report-cost.png", "report-learning.png"):
        assert (tmp_path / name).stat().st_size < 150_000
        pixels = np.asarray(Image.open(tmp_path / name).convert("L"))
        assert (pixels < 128).sum() > 1000, "nothing drawn"


def test_one_seed_is_called_one_seed(tmp_path):
    baseline = row("va_plain", (0.9,))
    text = report([baseline, row("va_other", (0.95,), baseline, (0.9,))], tmp_path / "report.md", seeds=(7,))
    assert "Trained with one seed only, which shows no significant difference: `va_other`." in text
    assert "More accurate" not in text and "standard deviation, pooled" not in text
    assert "2 networks, one recipe, one seed (7):" in text
