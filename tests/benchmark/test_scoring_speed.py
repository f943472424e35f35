"""The measurement of COCO scoring: both sides do the same work and agree on the scores."""

import pytest

from visionattn.benchmark import Unequal, scoring


def test_scoring_is_compared_with_the_bare_evaluator(capsys):
    scoring.main(["--images", "12", "--classes", "3", "--detections", "8", "--rounds", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == [f"| {name}" for name in scoring.KINDS]
    for line in lines[2:]:
        ours, bare, ratio = map(float, line.strip("| ").split(" | ")[1:])
        assert 0 < ours < 10 and 0 < bare < 10 and ratio > 0


def test_unequal_scores_are_not_compared(monkeypatch):
    evaluate = scoring._evaluate
    monkeypatch.setattr(scoring, "_evaluate", lambda *given: evaluate(*given) + 0.1)
    with pytest.raises(Unequal, match=r"bbox/map is 0.* but the bare evaluator says"):
        scoring.measure(["bbox"], scoring.make_scenes(6, 2), 2, rounds=1)
