"""Commands that print tables, without being told where to write them or with."""

import pytest

from visionattn.profiling import cost


def test_cost_prints_a_table_and_writes_nothing(run_cli, tmp_path):
    code, out, _ = run_cli("cost", "--size", "32", "--plugins", "cbam")
    assert code == 0 and "| none | 25,557,032 |" in out and "| cbam | 28,089,624 |" in out
    assert "triplet" not in out and not list(tmp_path.iterdir())


@pytest.fixture
def measured(monkeypatch):
    """What `cost` asks to be measured; nothing is."""
    asked = []

    def measure(size, names):
        asked.append((size, list(names)))
        return [cost.Cost("none", 1000, 2 * 10**9, 3 * 10**6)]

    monkeypatch.setattr(cost, "measure", measure)
    return asked


def test_cost_is_of_all_plugins_by_default_at_any_size(run_cli, measured):
    assert run_cli("cost", "--size", "1")[0] == run_cli("cost")[0] == 0
    assert measured == [(1, []), (224, [])]
    code, _, error = run_cli("cost", "--size", "0")
    assert code == 2 and "--size must be at least 1, got 0" in error and len(measured) == 2


def test_cost_writes_its_table(run_cli, measured, tmp_path):
    code, out, _ = run_cli("cost", "--out", "costs.md")
    assert code == 0 and (tmp_path / "costs.md").read_text() in out and (tmp_path / "costs.csv").is_file()
    code, _, error = run_cli("cost", "--out", "costs.txt")
    assert code == 2 and "--out must be a .md file, got costs.txt" in error and len(measured) == 1


def test_benchmark_prints_a_table_and_writes_nothing(run_cli, tmp_path):
    quick = ["--shapes", "1x8x7x7", "--layouts", "NCHW", "--seconds", "0.01", "--compile-seconds", "0"]
    code, out, err = run_cli("benchmark", "--plugins", "coord", *quick)
    assert code == 0, err
    assert "# Speed on" in out and "coord" in out and not list(tmp_path.iterdir())
