"""Every kernel compiles to what it should be for the GPUs of three generations, none of which need be there."""

import importlib
import os
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("module", MODULES)
def test_every_operator_of_a_module_is_compiled(module):
    operators = {
        name
        for name, value in vars(importlib.import_module(f"visionattn.ops.triton.{module}")).items()
        if hasattr(value, "run") and hasattr(value, "register_fake")
    }
    assert {call.op.run.__name__ for call in CALLS[module]} == operators


def _wanted(which, name):
    return name in which if isinstance(which, tuple) else which
