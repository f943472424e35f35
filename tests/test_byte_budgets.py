"""How many times its map each block and operation moves through memory and keeps: no more than the numbers below.

Counted operator by operator, so exact and free of noise: on the meta device in bfloat16, where the formulas for GPUs
run without our kernels, and on the CPU in float32. Whoever makes a block move less lowers its numbers here.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from visionattn import mixers, ops, plugins
from visionattn.profiling.operator_counter import count_pass, count_traffic
from visionattn.profiling.roofline import FLOORS, blocks, count, format_table

BLOCKS = {block.name: block for block in blocks(batch=2, side=28)}
DEVICES = {"meta": torch.bfloat16, "cpu": torch.float32}
# In bytes of the map: forward pass, backward pass, kept between them; on the meta device and on the CPU.
BUDGET = {
    "bam": ((9.4, 22.2, 2.4), (9.4, 22.2, 2.4)),
    "bmta": ((8.8, 21.7, 1.2), (8.8, 21.7, 1.2)),
    "cbam": ((8.1, 32.2, 2.0), (22.3, 14.4, 1.0)),
    "coord": ((6.6, 18.1, 1.1), (6.6, 18.1, 1.1)),
    "ela_b": ((6.6, 18.3, 1.2), (6.6, 18.3, 1.2)),
    "ela_l": ((6.6, 18.5, 1.2), (6.6, 18.5, 1.2)),
    "ela_s": ((6.6, 18.4, 1.2), (6.6, 18.4, 1.2)),
    "ela_t": ((6.6, 18.2, 1.2), (6.6, 18.2, 1.2)),
    "triplet": ((13.7, 17.0, 2.6), (15.9, 20.1, 2.5)),
    "ulsam": ((16.2, 34.3, 8.0), (26.9, 100.3, 1.1)),
    "boat": ((125.1, 72.1, 8.5), (84.9, 81.2, 10.1)),
    "cswin": ((21.2, 56.4, 7.6), (27.3, 56.4, 7.5)),
    "davit channels": ((19.1, 28.0, 2.8), (8.5, 18.4, 1.8)),
    "davit windows": ((16.3, 40.6, 6.1), (20.4, 40.5, 5.0)),
    "dwconv": ((10.2, 13.3, 3.0), (6.2, 13.3, 3.0)),
    "flatten": ((140.9, 382.2, 37.4), (53.0, 161.9, 5.1)),
    "halo": ((73.4, 102.7, 18.3), (129.7, 139.9, 17.2)),
    "lkca": ((99.9, 208.3, 14.5), (50.9, 106.7, 8.3)),
    "pool": ((5.0, 8.0, 1.0), (5.0, 8.0, 1.0)),
    "spatial reduction": ((9.9, 24.9, 3.1), (13.0, 24.8, 3.1)),
    "twins global": ((11.9, 24.9, 4.1), (13.0, 24.9, 3.1)),
    "twins local": ((16.2, 40.4, 6.1), (20.3, 40.4, 5.0)),
    "windows": ((16.5, 40.8, 6.1), (35.7, 59.0, 6.5)),
    "windows, shifted": ((25.5, 52.6, 7.7), (44.4, 66.1, 6.6)),
    "ops.axis_pools": ((6.5, 3.8, 0.3), (6.3, 3.7, 0.2)),
    "ops.map_pools": ((2.0, 10.0, 0.0), (9.0, 2.0, 1.0)),
    "ops.max_first": ((1.1, 3.1, 0.0), (1.0, 3.0, 0.0)),
    "ops.axis_gate": ((4.0, 12.0, 2.0), (4.0, 12.0, 2.0)),
    "ops.axis_attention": ((6.5, 18.5, 1.3), (6.5, 18.5, 1.3)),
    "ops.cross_gate": ((6.0, 11.0, 2.0), (6.0, 11.0, 2.0)),
    "ops.nested_gate": ((6.1, 22.1, 2.1), (13.3, 12.4, 1.0)),
    "ops.plane_conv": ((1.5, 2.6, 1.0), (17.7, 25.2, 1.2)),
    "ops.nhwc_conv": ((2.1, 4.1, 1.1), (2.1, 4.1, 1.1)),
    "ops.channel_moments": ((1.0, 9.0, 1.0), (6.0, 2.0, 1.0)),
    "ops.subspace_scores": ((11.0, 21.0, 7.0), (18.8, 86.1, 1.0)),
    "ops.residual_gate": ((2.0, 11.2, 1.0), (2.0, 6.2, 1.0)),
    "ops.attention": ((2.0, 4.7, 1.4), (3.4, 4.7, 1.3)),
    "ops.window_attention": ((16.4, 36.6, 6.4), (35.5, 54.8, 6.8)),
    "ops.stripe_attention": ((6.4, 14.7, 1.4), (7.7, 14.7, 1.3)),
    "ops.halo_attention": ((22.1, 28.8, 5.4), (40.8, 41.2, 5.1)),
    "ops.block_sparse_attention": ((6.1, 11.5, 1.5), (7.4, 13.4, 1.4)),
    "ops.cluster_attention": ((8.9, 17.5, 1.8), (10.5, 20.6, 2.4)),
    "ops.balanced_bisection": ((29.0, 0.0, 0.0), (14.0, 0.0, 0.0)),
    "ops.channel_attention": ((5.5, 10.9, 1.7), (4.1, 7.5, 1.0)),
    "ops.projected_channel_attention": ((19.1, 28.0, 2.8), (8.5, 18.4, 2.0)),
    "ops.focused_features": ((37.2, 129.6, 12.1), (17.1, 63.3, 6.0)),
    "ops.focused_attention": ((41.2, 114.3, 11.4), (13.3, 41.0, 1.2)),
    "ops.large_kernel_conv": ((95.7, 197.0, 12.5), (46.8, 95.5, 6.3)),
}
# Operations that pass over no map, or are parts of others here.
SMALL = {
    "Windows",
    "explain",
    "interpolate_kernel",
    "memory_format",
    "merge_windows",
    "partition_windows",
    "prefer_moments",
    "prefer_subspace_scores",
    "relative_position_bias",
    "toeplitz_matrix",
    "use_backend",
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", BUDGET)
def test_moves_and_keeps_no_more_than_agreed(name, device):
    block = BLOCKS[name]
    unit = torch.Size(block.shapes[0]).numel() * DEVICES[device].itemsize
    traffic = count(block, dtype=DEVICES[device], device=device)
    counted = tuple(round(n / unit, 1) for n in (traffic.forward.bytes, traffic.backward.bytes, traffic.saved))
    budget = BUDGET[name][list(DEVICES).index(device)]
    assert all(now <= then for now, then in zip(counted, budget, strict=True)), f"{name} now takes {counted}"
    assert sum(budget) <= 1.1 * sum(counted) + 0.5, f"{name} takes only {counted} on {device}: lower its budget"


def test_everything_is_counted():
    assert BUDGET.keys() == BLOCKS.keys()
    assert set(plugins.PLUGINS) <= BUDGET.keys() and FLOORS.keys() <= BUDGET.keys()
    operations = {name for name in ops.__all__ if name not in SMALL}
    counted = {name.removeprefix("ops.") for name in BUDGET if name.startswith("ops.")}
    assert counted == operations, "add it to _ops in visionattn/profiling/roofline.py and to BUDGET, or to SMALL"
    built = {type(block.build()) for block in BLOCKS.values() if not block.name.startswith("ops.")}
    missing = {getattr(mixers, name) for name in mixers.__all__} - built
    assert not missing, f"add {missing} to _MIXERS in visionattn/profiling/roofline.py, and to BUDGET"


def test_no_block_beats_its_floor():
    for name, floor in FLOORS.items():
        for forward, backward, _ in BUDGET[name]:
            assert forward >= floor.forward and backward >= floor.backward, name


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
    code, out, _ = run_cli("roofline", "cbam", "ops.cross_gate", "--batch", "64", "--out", "roofline.md")
    assert code == 0 and (tmp_path / "roofline.md").read_text() in out
    (row,) = [line.split(" | ") for line in out.splitlines() if line.startswith("| cbam ")]
    # 8.1 T of 102.8 MB at 3 TB/s; the floor is 4 T.
    assert row[1:6] == ["64x256x56x56", "8.1", "32.1", "2.0", "4 + 6"] and row[9].startswith("0.277 + ")
    assert row[10].startswith("0.137 + 0.206")
    assert format_table([], 2, 1.0, 1.0).count("\n") == 7
    code, _, err = run_cli("roofline", "cbamm")
    assert code == 2 and "unknown block cbamm; there are: bam, " in err
    code, _, err = run_cli("roofline", "cbam", "--bandwidth", "0")
    assert code == 2 and "must be above 0" in err
