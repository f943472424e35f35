"""Commands that print tables without being told where to write them."""


def test_cost_prints_a_table_and_writes_nothing(run_cli, tmp_path):
    code, out, _ = run_cli("cost", "--size", "32", "--plugins", "cbam")
    assert code == 0 and "| none | 25,557,032 |" in out and "| cbam | 28,089,624 |" in out
    assert "triplet" not in out and not list(tmp_path.iterdir())


def test_benchmark_prints_a_table_and_writes_nothing(run_cli, tmp_path):
    quick = ["--shapes", "1x8x7x7", "--layouts", "NCHW", "--seconds", "0.01", "--compile-seconds", "0"]
    code, out, err = run_cli("benchmark", "--plugins", "coord", *quick)
    assert code == 0, err
    assert "# Speed on" in out and "coord" in out and not list(tmp_path.iterdir())
