"""The Python of a kernel call: what the processor does before the GPU has anything to do, measured without launches.

The goal is 60 us for a forward pass, the bound here three times that: the machine may be slow or busy. A map that a GPU
passes over in less is not worth a kernel; see `WORTHWHILE` in visionattn/ops/_dispatch.py.
"""

import os
import sys
import time

import pytest
import torch

from visionattn import ops
from visionattn.ops import _dispatch

pytest.importorskip("triton", reason="without Triton there are no kernels")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("kernels are interpreted here, not launched", allow_module_level=True)

from visionattn.ops.triton import axis, subspace  # noqa: F401  (loaded before launches are replaced)

BOUND = 180e-6
CHANNEL, POSITION, MAPS = torch.rand(2, 64, 1, 1), torch.rand(2, 1, 8, 8), torch.rand(2, 4, 8, 8)
NUMBERS = torch.ones(64), torch.ones(64), torch.ones(4, 16)


def strips(rows, columns):
    return rows.unsqueeze(3), columns.unsqueeze(2)


CALLS = {
    "axis_gate": lambda x: ops.axis_gate(x, CHANNEL, POSITION),
    "axis_gate with residual and ReLU": lambda x: ops.axis_gate(x, CHANNEL, POSITION, residual=x, relu=True),
    "axis_pools": lambda x: ops.axis_pools(x, (("mean", 3), ("mean", 2))),
    "map_pools": lambda x: ops.map_pools(x),
    "cross_gate": lambda x: ops.cross_gate(x, CHANNEL, POSITION, "product"),
    "residual_gate": lambda x: ops.residual_gate(x, MAPS),
    "channel_moments": lambda x: ops.channel_moments(x),
    "subspace_scores": lambda x: ops.subspace_scores(x, *NUMBERS),
    # Several kernels each.
    "nested_gate": lambda x: ops.nested_gate(x, CHANNEL[:, :, 0, 0], lambda pools: POSITION),
    "axis_attention": lambda x: ops.axis_attention(x, (("mean", 3), ("mean", 2)), ((3,), (2,)), strips),
}


class NoLaunch:
    def __init__(self, kernel):
        self.kernel = kernel

    def __getitem__(self, grid):
        return lambda *args, **kwargs: None


@pytest.fixture(autouse=True)
def without_launches(monkeypatch):
    for name, module in list(sys.modules.items()):
        if name.startswith("visionattn.ops.triton.") and hasattr(module, "wrap_triton"):
            monkeypatch.setattr(module, "wrap_triton", NoLaunch)
    monkeypatch.setattr(_dispatch, "_cannot_run", lambda x, forced: "")


def seconds(call, x, rounds=30, calls=10):
    """The shortest mean of a few calls: what nothing else disturbed."""
    best = float("inf")
    with ops.use_backend("triton"):
        for _ in range(rounds):
            start = time.thread_time()
            for _ in range(calls):
                call(x)
            best = min(best, (time.thread_time() - start) / calls)
    return best


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "NHWC"])
@pytest.mark.parametrize("name", CALLS)
def test_a_call_takes_little_python(name, layout):
    x = torch.randn(2, 64, 8, 8).to(memory_format=layout)
    several = 2 if name in ("nested_gate", "axis_attention") else 1
    with torch.no_grad():
        took = seconds(CALLS[name], x)
    learning = seconds(CALLS[name], x.requires_grad_())
    print(f"{name}: {1e6 * took:.0f} us, with gradients {1e6 * learning:.0f} us")
    assert took < several * BOUND and learning < 2 * several * BOUND


def test_sizes_are_worked_out_once():
    from visionattn.ops.triton import _axis_launch as launch
    from visionattn.ops.triton._register import forget_sizes

    forget_sizes()
    x = torch.randn(2, 64, 8, 8)
    with ops.use_backend("triton"), torch.no_grad():
        for _ in range(3):
            ops.axis_gate(x, CHANNEL, POSITION)
    known = launch._gate_plan.cache_info()
    assert known.misses == 1 and known.hits == 2
