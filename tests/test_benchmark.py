"""The benchmark of the plug-ins and their costs: small runs, refusals, tables."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from visionattn.benchmark_cases import mixer_cases, network_cases, window_cases

from visionattn.benchmark import Case, compare, write_table
from visionattn.cost import Cost, saved_bytes
from visionattn.cost import write_table as write_costs

NAIVE = Path(__file__).parent / "naive"
QUICK = ["--shapes", "2x32x5x4", "--seconds", "0.001", "--out", "speed.json"]


def test_compares_and_writes_a_table(run_cli, tmp_path):
    threads = torch.get_num_threads()
    code, out, _ = run_cli("benchmark", "--plugins", "coord", "ela_t", "ulsam", "--naive", NAIVE, *QUICK)
    assert code == 0 and torch.get_num_threads() == threads
    assert "[12/12] ulsam 2x32x5x4 NHWC f+b: " in out
    record = json.loads((tmp_path / "speed.json").read_text())
    assert record["versions"]["torch"] == torch.__version__ and record["cpu"] and record["revision"]
    table = (tmp_path / "speed.md").read_text()
    assert table == write_table(record) and table in out
    for row in record["rows"]:
        assert row["rounds"] >= 11 and row["error"] < 1e-4
        assert row["ratio"]["p10"] <= row["ratio"]["p50"] <= row["ratio"]["p90"]
        assert f"{row['ratio']['p50']:.2f} ({row['ratio']['p10']:.2f}-{row['ratio']['p90']:.2f}; " in table
    assert "| coord | literal | 2x32x5x4 | NHWC | " in table and " ms" not in table


class Scale(nn.Module):
    def __init__(self, channels, factor=2.0, slope=0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, 1, 1))
        self.factor, self.slope = factor, slope

    def forward(self, x):
        # Adds nothing to the value, and `slope` to the gradient.
        return self.factor * self.weight * x + self.slope * (x - x.detach())


def case(shape=(2, 3, 4, 5), **kwargs):
    def build():
        ours, rival = Scale(shape[1]), Scale(shape[1], **kwargs)
        rival.load_state_dict(ours.state_dict())
        return ours, rival

    return Case("scale", "another", shape, build)


@pytest.mark.parametrize("mode", ["fwd", "f+b"])
def test_unequal_outputs_are_refused(mode):
    with pytest.raises(ValueError, match=r"scale and its rival \(another\) differ by .*nothing was timed"):
        compare(case(factor=2.001), mode, 0.001)


def test_unequal_gradients_are_refused():
    with pytest.raises(ValueError, match=r"differ by .*nothing was timed"):
        compare(case(slope=0.01), "f+b", 0.001)


def test_not_a_number_is_refused():
    with pytest.raises(ValueError, match="differ by nan"):
        compare(case(factor=float("nan")), "fwd", 0.001)


def test_mixers_are_compared_with_timm_and_the_literal_formulations():
    cases = {(c.name, c.rival): c for c in mixer_cases(NAIVE) if c.shape[1] <= 14 and c.shape[2] >= 14}
    assert {rival for _, rival in cases} == {"timm", "literal"}
    for one in cases.values():
        for mode in ("fwd", "f+b"):
            assert compare(one, mode, 0.0)["error"] < 1e-4
    assert compare(window_cases()[0], "fwd", 0.0)["ratio"]["p50"] > 0


def test_networks_are_compared_with_timm():
    (one,) = network_cases(["davit_tiny"], size=32, batch=1)
    row = compare(one, "f+b", 0.0)
    assert row["error"] < 1e-4 and row["saved"]["ours"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--plugins", "cbamm", "--naive", NAIVE], "unknown plug-in 'cbamm'"),
        (["--plugins", "cbam", "--naive", "nowhere"], "no literal formula of cbam in nowhere"),
        (["--plugins", "cbam", "--naive", NAIVE, "--shapes", "8x256x56"], "--shapes must be like 8x256x56x56"),
    ],
)
def test_bad_arguments(run_cli, tmp_path, options, message):
    code, _, err = run_cli("benchmark", *QUICK, *options)
    assert code == 2 and message in err and not list(tmp_path.iterdir())


def test_every_plugin_has_a_literal_formula():
    from visionattn.plugins import PLUGINS

    for name in PLUGINS:
        assert any((NAIVE / f"{stem}.py").is_file() for stem in (name, name.split("_")[0])), name


def test_saved_bytes_counts_memory_once():
    model = nn.Sequential(nn.Linear(3, 5), nn.Sigmoid())
    # The input for the weight's gradient, the result for the sigmoid's; not the weight, which stays anyway.
    assert saved_bytes(model, torch.randn(4, 3)) == 4 * (4 * 3 + 4 * 5)
    x = torch.randn(4, 3, requires_grad=True)
    assert saved_bytes(Square(), x) == 4 * 4 * 3


class Square(nn.Module):
    def forward(self, x):
        return x * x


def test_table_of_costs(tmp_path):
    costs = [Cost("none", 1000, 2 * 10**9, 3 * 10**6), Cost("cbam", 1100, 2 * 10**9 + 10**6, 4 * 10**6)]
    text = write_costs(costs, 224, tmp_path / "costs.md")
    assert "| cbam | 1,100 | 100 (10.00%) | 2.001 | 4.0 | 28.09 M | 3.864 | CBAM paper, table 4 | " in text
    assert (tmp_path / "costs.md").read_text() == text
    assert (tmp_path / "costs.csv").read_text().splitlines()[2] == "cbam,1100,2001000000,4000000"


def test_costs_of_networks():
    from visionattn.cost import measure

    costs = {cost.name: cost for cost in measure(32, ["cbam"])}
    assert [costs["none"].params, costs["cbam"].params] == [25_557_032, 28_089_624]
    assert costs["none"].macs < costs["cbam"].macs and costs["none"].saved < costs["cbam"].saved
