"""Every kernel compiles to what it should be for the GPUs of three generations, none of which need be there.

By default the launches of one typical map each, for the generation with the least shared memory and for the one that we
measure on. With `-m slow`: other maps and dtypes, all generations, and every launch that the networks of the zoo make.
"""

import importlib
import os
import sys
from functools import cache
from pathlib import Path

import pytest
import timm
import torch
from torch.library import CustomOpDef

import visionattn.ops
from visionattn.ops import _dispatch

pytest.importorskip("triton", reason="without Triton there are no kernels")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("kernels are interpreted here, not compiled", allow_module_level=True)

from launches import SHARED, compile_for, launches, launches_of, loads_vectors, spilled, uses_tensor_cores

MODULES = sorted(
    path.stem for path in (Path(visionattn.ops.__file__).parent / "triton").glob("*.py") if path.stem[0] != "_"
)
CALLS = {module: importlib.import_module(f"launches.{module}").CALLS for module in MODULES}
USUAL = (86, 90)
# Bytes of a thread's stack that are let pass: two loads of 16 bytes, which stay in the first cache. Kernels of the zoo
# need up to that much in float32, and in the smallest maps of ULSAM; one that spills for a reason needs hundreds.
STACK = 32
# Networks that launch what another launches: deeper, wider inside their blocks, or with another kernel for the strips.
ALIKE = ("resnet34", "resnet101", "resnext", "wide_resnet", "ela_t", "ela_b", "ela_s")
ZOO = [name for name in timm.list_models("va_*") if not any(part in name for part in ALIKE)]


def slow(condition):
    return [pytest.mark.slow] if condition else []


@pytest.mark.parametrize(
    "capability", [pytest.param(number, marks=slow(number not in USUAL)) for number in SHARED], ids=str
)
@pytest.mark.parametrize(
    "call",
    [
        pytest.param(call, id=f"{module}-{call.name}", marks=slow(call.slow))
        for module, calls in CALLS.items()
        for call in calls
    ],
)
def test_compiles_well(call, capability):
    recorded = launches(call)
    assert recorded
    for launch in recorded:
        name, compiled = launch.kernel.__name__, check(launch, capability)
        assert not _wanted(call.vectors, name) or loads_vectors(compiled), f"{name} loads single numbers"
        assert not _wanted(call.dot, name) or uses_tensor_cores(compiled), f"{name} does not use tensor cores"


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("name", ZOO)
def test_what_a_network_launches_compiles_well(name, dtype, monkeypatch):
    monkeypatch.setattr(_dispatch, "_cannot_run", lambda x, forced: "")
    # Small maps take other ways as well; kernels do not ask for their size.
    with torch.device("meta"):
        network = timm.create_model(name).to(dtype).train()
        x = torch.empty(2, *network.default_cfg["input_size"], dtype=dtype)
    layouts = [torch.contiguous_format, *([torch.channels_last] if "net" in name else [])]
    for layout in layouts:
        inputs = x.to(memory_format=layout).requires_grad_()
        for launch in launches_of(lambda inputs=inputs: network(inputs).sum().backward()):
            for capability in SHARED:
                check(launch, capability)


@cache
def _checked():
    return {}


def check(launch, capability):
    name, compiled = launch.kernel.__name__, compile_for(launch, capability)
    spills = _checked().setdefault(compiled.hash, spilled(compiled) if compiled.hash not in _checked() else None)
    assert spills <= STACK, f"{name} spills {spills} bytes"
    assert compiled.metadata.shared <= SHARED[capability], f"{name} shares {compiled.metadata.shared} bytes"
    return compiled


def test_every_operator_is_compiled():
    called = {call.op for calls in CALLS.values() for call in calls}
    modules = [module for name, module in sys.modules.items() if name.startswith("visionattn.ops.triton.")]
    operators = {value for module in modules for value in vars(module).values() if isinstance(value, CustomOpDef)}
    assert operators and operators == called


def test_grids_have_one_axis():
    # The others end at 65,535, which large maps pass.
    for calls in CALLS.values():
        assert all(len(launch.grid) == 1 for call in calls[:4] for launch in launches(call))


def _wanted(which, name):
    return name in which if isinstance(which, tuple) else which
