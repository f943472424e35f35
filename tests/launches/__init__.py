"""What each module of kernels launches for maps of real networks: `CALLS` of the module of the same name in here.

`tests/ops/test_compile_gate.py` compiles these launches, and those of the whole zoo, for GPUs that need not be there.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch.library import CustomOpDef
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from visionattn.ops import use_backend

__all__ = ["Call", "Launch", "compile_for", "constants", "launches", "launches_of", "meta"]

# A wide map of the first stage of a ResNet-50.
SHAPE = (128, 256, 56, 56)
# Bytes of shared memory that a block can have, by compute capability.
SHARED = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024}
_TYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "i1",
}
# Loads of 16 bytes or more by one thread; cp.async.cg copies no fewer.
_VECTORS = re.compile(r"ld\.global\S*\.(v4\.[bfu]32|v8\.[bfu](16|32)|v[24]\.[bfu]64)|cp\.async\.cg\b")
_TENSOR_CORES = re.compile(r"\b(mma\.sync|wgmma\.mma_async|tcgen05\.mma)")


class Call(NamedTuple):
    """A call of a registered operator, and what its kernels must be compiled to.

    Args:
        name: For the test's name.
        op: What `register` made.
        args: Its arguments, tensors on the meta device.
        vectors: Whether each kernel must load 16 bytes at once: True, False (not looked at) or the names of those that
            must.
        dot: Whether each kernel must use tensor cores, in the same way.
        slow: Only with `-m slow`: for what differs little from another call.
    """

    name: str
    op: Any
    args: tuple[Any, ...]
    vectors: bool | tuple[str, ...] = True
    dot: bool | tuple[str, ...] = False
    slow: bool = False


class Launch(NamedTuple):
    """A kernel with its grid and the arguments that it is launched with."""

    kernel: Any
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16, layout: str = "NCHW") -> torch.Tensor:
    """A tensor without numbers. NHWC for maps `(B, C, H, W)` only."""
    memory_format = torch.channels_last if layout == "NHWC" else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, device="meta", memory_format=memory_format)


def launches(call: Call) -> list[Launch]:
    """What the operator launches for these arguments, in order."""
    found: list[Launch] = []

    class Recorder:
        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: Any) -> Callable[..., None]:
            return lambda *args, **kwargs: found.append(Launch(self.kernel, grid, args, kwargs))

    patched = {
        name: module
        for name, module in sys.modules.items()
        if name.startswith("visionattn.ops.triton.") and hasattr(module, "wrap_triton")
    }
    before = {name: module.wrap_triton for name, module in patched.items()}
    try:
        for module in patched.values():
            module.wrap_triton = Recorder
        call.op.run(*call.args)
    finally:
        for name, module in patched.items():
            module.wrap_triton = before[name]
    return found


def launches_of(run: Callable[[], Any]) -> list[Launch]:
    """What a computation on the meta device would launch on a GPU that takes every kernel, each compilation once."""
    found: dict[Any, Launch] = {}
    operators = {
        value._qualname.split("::")[1]: value
        for name, module in list(sys.modules.items())
        if name.startswith("visionattn.ops.triton.")
        for value in vars(module).values()
        if isinstance(value, CustomOpDef)
    }

    class Operators(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.namespace == "visionattn":
                for launch in launches(Call("", operators[func._opname], args)):
                    found.setdefault(_Compilation.of(launch).key(), launch)
            return func(*args, **(kwargs or {}))

    with use_backend("triton"), Operators():
        run()
    return list(found.values())


class _Compilation(NamedTuple):
    """What Triton compiles a launch for, as at run time: arguments that are 1 or multiples of 16 are known to be."""

    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    hints: dict[tuple[int, ...], list[list[Any]]]
    options: dict[str, Any]

    @classmethod
    def of(cls, launch: Launch) -> "_Compilation":
        names = launch.kernel.arg_names
        options = {name: value for name, value in launch.kwargs.items() if name not in names}
        given = {**dict(zip(names, launch.args, strict=False)), **launch.kwargs}
        found = cls(launch.kernel, {}, {}, {}, options)
        for index, parameter in enumerate(launch.kernel.params):
            value = given.get(parameter.name, parameter.default)
            if parameter.is_constexpr or value is None or (type(value) is int and value == 1):
                found.signature[parameter.name], found.constants[parameter.name] = "constexpr", value
                continue
            if isinstance(value, torch.Tensor):
                found.signature[parameter.name] = f"*{_TYPES[value.dtype]}"
                # PyTorch's allocations are aligned; views need not be.
                aligned = value.storage_offset() * value.element_size() % 16 == 0
            elif isinstance(value, (bool, float)):
                found.signature[parameter.name] = "i1" if isinstance(value, bool) else "fp32"
                aligned = False
            else:
                found.signature[parameter.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
                aligned = value % 16 == 0
            if aligned:
                found.hints[(index,)] = [["tt.divisibility", 16]]
        return found

    def key(self) -> Any:
        parts = (self.signature, self.constants, self.options)
        return self.kernel.__name__, *(tuple(sorted(p.items(), key=str)) for p in parts), tuple(self.hints)


def constants(launch: Launch) -> dict[str, Any]:
    """What a kernel is compiled for."""
    return {p.name: launch.kwargs[p.name] for p in launch.kernel.params if p.is_constexpr}


def compile_for(launch: Launch, capability: int) -> Any:
    """Compiles a launch as Triton would at run time."""
    kernel, signature, values, hints, options = _Compilation.of(launch)
    source = ASTSource(kernel, signature=signature, constexprs=values, attrs=hints)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def spilled(compiled: Any) -> int:
    """Bytes of a thread's stack: what the registers do not hold."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(compiled.asm["cubin"])
        tool = triton.knobs.nvidia.cuobjdump.path
        usage = subprocess.run([tool, "-res-usage", path], capture_output=True, text=True, check=True).stdout
    return sum(int(stack) for stack in re.findall(r"STACK:(\d+)", usage))


def loads_vectors(compiled: Any) -> bool:
    return bool(_VECTORS.search(compiled.asm["ptx"]))


def uses_tensor_cores(compiled: Any) -> bool:
    return bool(_TENSOR_CORES.search(compiled.asm["ptx"]))
