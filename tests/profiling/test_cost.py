"""What plug-ins add to a network, counted."""

import torch
from torch import nn

from visionattn.profiling.cost import Cost, measure, write_table
from visionattn.profiling.operator_counter import saved_bytes


class Square(nn.Module):
    def forward(self, x):
        return x * x


def test_saved_bytes_counts_memory_once():
    model = nn.Sequential(nn.Linear(3, 5), nn.Sigmoid())
    # The input for the weight's gradient, the result for the sigmoid's; not the weight, which stays anyway.
    assert saved_bytes(model, torch.randn(4, 3)) == 4 * (4 * 3 + 4 * 5)
    assert saved_bytes(model.to("meta"), torch.randn(4, 3, device="meta")) == 4 * (4 * 3 + 4 * 5)
    assert saved_bytes(Square(), torch.randn(4, 3, requires_grad=True)) == 4 * 4 * 3


def test_table_of_costs(tmp_path):
    costs = [Cost("none", 1000, 2 * 10**9, 3 * 10**6), Cost("cbam", 1100, 2 * 10**9 + 10**6, 4 * 10**6)]
    text = write_table(costs, 224, tmp_path / "costs.md")
    assert "| cbam | 1,100 | 100 (10.00%) | 2.001 | 4.0 | 28.09 M | 3.864 | CBAM paper, table 4 | " in text
    assert (tmp_path / "costs.md").read_text() == text
    assert (tmp_path / "costs.csv").read_text().splitlines()[2] == "cbam,1100,2001000000,4000000"


def test_costs_of_networks():
    costs = {cost.name: cost for cost in measure(32, ["cbam"])}
    assert [costs["none"].params, costs["cbam"].params] == [25_557_032, 28_089_624]
    assert costs["none"].macs < costs["cbam"].macs and costs["none"].saved < costs["cbam"].saved
