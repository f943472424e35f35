"""Every kernel compiles to what it should be for the GPUs of three generations, none of which need be there."""

import importlib
import os
import sys
from pathlib import Path

import pytest
from torch.library import CustomOpDef

import visionattn.ops

pytest.importorskip("triton", reason="without Triton there are no kernels")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("kernels are interpreted here, not compiled", allow_module_level=True)

from launches import SHARED, compile_for, launches, loads_vectors, spilled, uses_tensor_cores

MODULES = sorted(
    path.stem for path in (Path(visionattn.ops.__file__).parent / "triton").glob("*.py") if path.stem[0] != "_"
)
CALLS = {module: importlib.import_module(f"launches.{module}").CALLS for module in MODULES}


@pytest.mark.parametrize("capability", SHARED)
@pytest.mark.parametrize(
    "call",
    [
        pytest.param(call, id=f"{module}-{call.name}", marks=[pytest.mark.slow] if call.slow else [])
        for module, calls in CALLS.items()
        for call in calls
    ],
)
def test_compiles_well(call, capability):
    recorded = launches(call)
    assert recorded
    for launch in recorded:
        name = launch.kernel.__name__
        compiled = compile_for(launch, capability)
        assert spilled(compiled) == 0, f"{name} spills {spilled(compiled)} bytes"
        assert compiled.metadata.shared <= SHARED[capability], f"{name} shares {compiled.metadata.shared} bytes"
        assert not _wanted(call.vectors, name) or loads_vectors(compiled), f"{name} loads single numbers"
        assert not _wanted(call.dot, name) or uses_tensor_cores(compiled), f"{name} does not use tensor cores"


def test_every_operator_is_compiled():
    called = {call.op for calls in CALLS.values() for call in calls}
    modules = [module for name, module in sys.modules.items() if name.startswith("visionattn.ops.triton.")]
    operators = {value for module in modules for value in vars(module).values() if isinstance(value, CustomOpDef)}
    assert operators and operators == called


def _wanted(which, name):
    return name in which if isinstance(which, tuple) else which
