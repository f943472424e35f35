"""Results kept run by run: nothing is computed twice, and other settings are refused."""

import pytest

from visionattn.comparison.kept_runs import KeptRuns


def test_goes_on_where_it_was(tmp_path, capsys):
    calls = []
    for _ in range(2):
        kept = KeptRuns(tmp_path / "runs.json", {"steps": 3, "sizes": (1, 2)})
        for name in ("a", "b"):
            assert kept.get(name, lambda name=name: calls.append(name) or {"x": [1.5, 2]}) == {"x": [1.5, 2]}
    assert calls == ["a", "b"] and len(capsys.readouterr().out.splitlines()) == 2


def test_a_run_that_failed_is_not_kept(tmp_path):
    kept = KeptRuns(tmp_path / "runs.json", {})
    with pytest.raises(ZeroDivisionError):
        kept.get("a", lambda: 1 / 0)
    assert kept.get("a", lambda: 3) == 3


def test_other_settings_are_refused(tmp_path):
    KeptRuns(tmp_path / "runs.json", {"steps": 3}).get("a", lambda: 1)
    with pytest.raises(ValueError, match=r"runs.json holds runs with \{'steps': 3\}, not \{'steps': 4\}: move it away"):
        KeptRuns(tmp_path / "runs.json", {"steps": 4})
