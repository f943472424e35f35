"""How many times its map each block and operation moves through memory and keeps: no more than byte_budgets.json says.

Whoever makes a block move less lowers its numbers there: `python -m visionattn.testing.byte_budgets --update NAME`.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from visionattn import ops
from visionattn.profiling.operator_counter import count_pass, count_traffic
from visionattn.profiling.roofline import format_table
from visionattn.testing import byte_budgets
from visionattn.testing.byte_budgets import DEVICES, counted

BLOCKS = byte_budgets.subjects()
BUDGETS = byte_budgets.read()
# Operations that pass over no map, or are parts of others here.
SMALL = {
    "Windows",
    "explain",
    "interpolate_kernel",
    "memory_format",
    "merge_windows",
    "prefer_moments",
    "partition_windows",
    "prefer_subspace_scores",
    "relative_position_bias",
    "toeplitz_matrix",
    "use_backend",
}
# Those of one plug-in or mixer each, whose budget counts them.
SMALL |= {
    "BlockMap",
    "Blocks",
    "Packing",
    "bidirectional_wkv",
    "cross_merge",
    "cross_scan",
    "ema_kernel",
    "gated_scan",
    "hilbert_order",
    "linear_recurrence",
    "masked_attention",
    "memory_scan",
    "mixture_attention",
    "mixture_weights",
    "moving_average",
    "pack_tokens",
    "packed_attention",
    "pair_mask",
    "polynomial_attention",
    "nested_attention",
    "nhwc_upconv",
    "project_apart",
    "rank_augmented_attention",
    "recomputed",
    "relational_attention",
    "rotate_pairs",
    "rotation_tables",
    "region_pairs",
    "route_blocks",
    "route_regions",
    "routed_attention",
    "routed_self_attention",
    "score_gate",
    "strip_conv",
    "subspace_attention",
    "summed_attention",
    "widened",
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", BLOCKS)
def test_moves_and_keeps_no_more_than_agreed(name, device):
    renew = f"python -m visionattn.testing.byte_budgets --update {name!r}"
    assert name in BUDGETS, f"{name} has no budget: {renew}"
    now, budget = counted(BLOCKS[name], device), BUDGETS[name][device]
    assert all(n <= then for n, then in zip(now, budget, strict=True)), f"{name} now takes {now}, not {budget}"
    assert sum(budget) <= 1.1 * sum(now) + 0.5, f"{name} takes only {now} on {device}: {renew}"


def test_everything_is_counted():
    assert BUDGETS.keys() == BLOCKS.keys()
    operations = {name for name in ops.__all__ if name not in SMALL}
    named = {name.removeprefix("ops.") for name in BLOCKS if name.startswith("ops.")}
    assert named == operations, "add it to _ops in visionattn/profiling/roofline.py, or to SMALL"


def test_no_block_beats_its_floor():
    floors = {name: block.floor for name, block in BLOCKS.items() if block.floor}
    assert len(floors) > 15
    for name, floor in floors.items():
        for forward, backward, _ in BUDGETS[name].values():
            assert forward >= floor.forward and backward >= floor.backward, name


def test_budgets_are_renewed_by_a_command(tmp_path, capsys):
    path = tmp_path / "budgets.json"
    path.write_text('{"pool": {"meta": [9, 9, 9], "cpu": [9, 9, 9]}, "gone": {}}')
    byte_budgets.main(["--update", "ops.axis_pools"], path)
    budgets = byte_budgets.read(path)
    assert {*budgets} == {"pool", "ops.axis_pools"} and budgets["pool"]["cpu"] == [9, 9, 9]
    assert "gone: {} -> gone" in capsys.readouterr().out
    byte_budgets.main(["pool"], path)
    assert capsys.readouterr().out == f"pool: {budgets['pool']} -> {BUDGETS['pool']}\n"
    assert byte_budgets.read(path) == budgets
    with pytest.raises(ValueError, match=r"unknown block pol; there are: .*bam, "):
        byte_budgets.main(["pol"], path)


def test_counts_what_operators_read_and_write():
    x, y = torch.zeros(2, 3, device="meta"), torch.zeros(2, 3, device="meta")
    cases = {
        "a sum reads two and writes one": (lambda: x + y, 3 * 24),
        "in place, what is written was read": (lambda: x.add_(y), 3 * 24),
        "a copy does not read what it overwrites": (lambda: x.copy_(y), 2 * 24),
        "nor does an operator that is given memory": (lambda: torch.add(x, y, out=torch.empty_like(x)), 3 * 24),
        "an operand that is given twice is read once": (lambda: x * x, 2 * 24),
        "repeated values are read once": (lambda: x + y[:, :1].expand(2, 3), 24 + 8 + 24),
        "views are free": (lambda: x.t().unsqueeze(0).expand(4, 3, 2), 0),
        "gathering reads what it gives": (
            lambda: x.index_select(0, torch.empty(1, dtype=torch.int64, device="meta")),
            12 + 8 + 12,
        ),
    }
    for what, (run, moved) in cases.items():
        assert count_pass(run)[1].bytes == moved, what


def test_counts_operations():
    linear = nn.Linear(8, 4, bias=False, device="meta")
    traffic = count_traffic(linear, torch.zeros(16, 8, device="meta"))
    product = 2 * 16 * 8 * 4
    assert (traffic.forward.flops, traffic.backward.flops) == (product, 2 * product)
    assert (traffic.forward.calls, traffic.saved) == (1, 4 * 16 * 8)
    depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False, device="meta")
    traffic = count_traffic(depthwise, torch.zeros(2, 6, 5, 5, device="meta"))
    assert (traffic.forward.flops, traffic.backward.flops) == (5400, 10800)


@pytest.mark.parametrize("learns", [False, True])
def test_attention_is_one_operator_as_on_a_gpu(learns):
    q, k, v = (torch.zeros(2, 3, n, 8, device="meta", dtype=torch.bfloat16) for n in (5, 7, 7))
    bias = torch.zeros(3, 5, 7, device="meta", dtype=torch.bfloat16) if learns else None
    inputs = (q, k, v, bias) if learns else (q, k, v)
    traffic = count_traffic(lambda *args: F.scaled_dot_product_attention(*args), *inputs)
    small, large, sums, scores = 2 * q.numel(), 2 * k.numel(), 4 * 2 * 3 * 5, learns * 2 * 3 * 5 * 7
    assert traffic.forward.bytes == 2 * small + 2 * large + sums + scores
    assert traffic.backward.bytes == 4 * small + 4 * large + sums + 2 * scores
    assert traffic.saved == traffic.forward.bytes
    assert 2 * traffic.backward.flops == 5 * traffic.forward.flops == 5 * 4 * 6 * 5 * 7 * 8


def test_command_prints_the_table(run_cli, tmp_path):
    code, out, _ = run_cli("roofline", "cbam", "ops.axis_gate", "--batch", "64", "--out", "roofline.md")
    assert code == 0 and (tmp_path / "roofline.md").read_text() in out
    (row,) = [line.split(" | ") for line in out.splitlines() if line.startswith("| cbam ")]
    # 8.1 T of 102.8 MB at 3 TB/s; the floor is 4 T.
    assert row[1:6] == ["64x256x56x56", "8.1", "32.1", "2.0", "4 + 6"] and row[9].startswith("0.277 + ")
    assert row[10].startswith("0.137 + 0.206")
    assert format_table([], 2, 1.0, 1.0).count("\n") == 7
    code, _, err = run_cli("roofline", "cbamm")
    assert code == 2 and "unknown block cbamm; there are: " in err and " bam, " in err
    code, _, err = run_cli("roofline", "cbam", "--bandwidth", "0")
    assert code == 2 and "must be above 0" in err
