"""How many times its map a plug-in moves through memory by kernels: what its operators are given and give, counted.

Counted over the calls that a training step on a GPU makes, on the meta device; kernels read and write each map of
theirs once, as their tests in the interpreter show.
"""

import pytest
import torch

from visionattn import plugins
from visionattn.ops import _dispatch, use_backend
from visionattn.profiling.operator_counter import count_traffic

pytest.importorskip("triton", reason="without Triton there are no kernels")

SHAPE = (2, 256, 56, 56)
# Forward and backward pass at most, in bytes of the map, with what is small in both; and with residual and ReLU, of
# which PyTorch alone takes 5 + 3: sum R, R, W, ReLU R, W; back R, R, W.
BUDGETS = {
    "cbam": ((4.2, 5.2), (5.2, 7.2)),
    "bam": ((5.4, 9.2), None),
    "ulsam": ((4.4, 6.5), (5.4, 8.5)),
    "triplet": ((3.8, 4.9), (4.8, 6.9)),
    "coord": ((3.3, 4.5), (4.3, 6.5)),
}
CLASSES = {
    "cbam": plugins.CBAM,
    "bam": plugins.BAM,
    "ulsam": plugins.ULSAM,
    "triplet": plugins.TripletAttention,
    "coord": plugins.CoordinateAttention,
}


def counted(function, *shapes):
    inputs = [torch.empty(shape, device="meta", dtype=torch.bfloat16) for shape in shapes]
    with use_backend("triton"):
        traffic = count_traffic(function, *inputs)
    unit = inputs[0].numel() * inputs[0].itemsize
    return traffic.forward.bytes / unit, traffic.backward.bytes / unit


@pytest.fixture(autouse=True)
def on_a_gpu(monkeypatch):
    monkeypatch.setattr(_dispatch, "_cannot_run", lambda x, forced: "")


@pytest.mark.parametrize("name", BUDGETS)
def test_moves_no_more_than_agreed(name):
    plugin = CLASSES[name](SHAPE[1], device="meta", dtype=torch.bfloat16).train()
    bare, with_residual = BUDGETS[name]
    cases = {"bare": (bare, plugin, (SHAPE,))}
    if with_residual:

        def block(x, residual):
            return plugin(x, residual=residual, relu=True)

        cases["residual and ReLU"] = (with_residual, block, (SHAPE, SHAPE))
    for what, (budget, function, shapes) in cases.items():
        found = counted(function, *shapes)
        assert all(now <= most for now, most in zip(found, budget, strict=True)), f"{what}: {found}, not {budget}"
        assert all(now >= most - 0.6 for now, most in zip(found, budget, strict=True)), (
            f"{what}: only {found}, lower it"
        )
