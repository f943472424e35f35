"""Which backend an operation takes, over devices, dtypes, sizes and wishes; fake tensors stand for a GPU's."""

import os
import subprocess
import sys
from contextlib import nullcontext
from types import ModuleType

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad

from visionattn.ops import _dispatch
from visionattn.ops._dispatch import Choice, explain, has_kernel, use_backend

LARGE = (8, 256, 56, 56)


@pytest.fixture
def op(monkeypatch):
    """An operation with a kernel that takes dense maps, on a machine that passes for one with a GPU."""
    current = []
    kernels = ModuleType("visionattn.ops.triton.example")
    kernels.doubled = lambda x: "the kernel ran"
    monkeypatch.setitem(sys.modules, kernels.__name__, kernels)
    monkeypatch.setattr(_dispatch, "_without_gpu", lambda index: "")
    monkeypatch.setattr(torch.cuda, "device_of", lambda x: current.append(x.device) or nullcontext())

    @has_kernel("example", lambda x: "" if x.is_contiguous() else "the map is not dense")
    def doubled(x):
        """Twice the map."""
        return x * 2

    doubled.current = current
    return doubled


def on_gpu(shape=LARGE, dtype=torch.bfloat16, device="cuda"):
    with FakeTensorMode():
        return torch.empty(shape, dtype=dtype, device=device)


def test_a_gpu_takes_kernels_where_they_pay(op):
    assert explain(op, on_gpu()).backend == "triton"
    assert op(on_gpu()) == "the kernel ran"
    assert explain(op, on_gpu((1, 8, 7, 7))) == Choice(
        "torch", "the map is smaller than 4 MB, where launches count more than bytes"
    )
    assert op(on_gpu((1, 8, 7, 7)), backend="triton") == "the kernel ran"


def test_maps_from_4_MB_on_are_worth_a_launch(op):
    assert explain(op, on_gpu((2**21,))).backend == "triton"  # two bytes each
    assert explain(op, on_gpu((2**21 - 1,))).backend == "torch"
    assert explain(op, on_gpu((2**20,), torch.float32)).backend == "triton"


def test_kernels_are_launched_on_the_device_of_the_map(op):
    op(on_gpu(device="cuda:1"))
    op(on_gpu(device="cuda:0"))
    assert [device.index for device in op.current] == [1, 0]


def test_the_map_may_be_given_by_name(op):
    assert op(x=on_gpu()) == "the kernel ran"
    assert explain(op, x=on_gpu()).backend == "triton"
    assert op(x=torch.ones(2)).tolist() == [2, 2]
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'x'"):
        op()


def test_transforms_get_torch_code_whatever_is_wished(op):
    choices, x = [], torch.ones(2, 2)

    def note(x):
        choices.append(explain(op, x, backend="triton"))
        return x.sum()

    torch.vmap(note)(x), torch.func.grad(note)(x), torch.func.jvp(note, (x,), (x,))
    with forward_ad.dual_level():
        note(forward_ad.make_dual(x, x))
    assert choices == [Choice("torch", "torch.func and forward-mode differentiation get the torch code")] * 4


@pytest.mark.parametrize(
    ("x", "reason"),
    [
        (on_gpu(dtype=torch.float64), "kernels take float16, bfloat16 and float32 only"),
        (on_gpu().mT, "the map is not dense"),
        (torch.ones(2, 3), "kernels run on CUDA devices only"),
        (torch.empty(LARGE, device="meta"), "kernels run on CUDA devices only"),
    ],
    ids=["float64", "strides", "cpu", "meta"],
)
def test_what_no_kernel_takes_is_computed_by_torch_or_refused(op, x, reason):
    assert explain(op, x) == Choice("torch", reason)
    assert explain(op, x, backend="triton") == Choice("torch", f"asked for triton, but {reason}")
    assert op(x).shape == x.shape
    with pytest.raises(ValueError, match=f"doubled has no kernel for this: {reason}"):
        op(x, backend="triton")


def test_a_wish_holds_inside_and_the_call_has_the_last_word(op):
    with use_backend("torch"):
        assert explain(op, on_gpu()) == Choice("torch", "asked for")
        assert explain(op, on_gpu(), backend="triton") == Choice("triton", "asked for")
        with use_backend("triton"), pytest.raises(ValueError, match="CUDA devices only"):
            op(torch.ones(2))
        assert explain(op, on_gpu()).backend == "torch"
    assert explain(op, on_gpu()).backend == "triton"


def test_without_a_gpu_that_can_run_them_there_are_no_kernels(monkeypatch):
    asked = _dispatch._without_gpu.__wrapped__  # the answer is kept for a process
    assert asked(0) == "" if torch.cuda.is_available() else "there is no CUDA device"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    assert asked(0) == "kernels need compute capability 8.0"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert asked(0) == "Triton is not installed"


def test_exporters_get_torch_code_whatever_is_wished(op):
    class Net(torch.nn.Module):
        def forward(self, x):
            return op(x, backend="triton")

    program = torch.export.export(Net(), (torch.ones(2),))
    assert [node.target for node in program.graph.nodes if node.op == "call_function"] == [torch.ops.aten.mul.Tensor]


def test_what_has_no_kernels_is_explained_too():
    assert explain(torch.relu, torch.ones(2)) == Choice("torch", "there are no kernels of it")


def test_unknown_names_are_refused_at_once(op):
    message = "backend must be one of auto, torch, triton, got 'cuda'"
    with pytest.raises(ValueError, match=message), use_backend("cuda"):
        pass
    with pytest.raises(ValueError, match=message):
        op(torch.ones(2), backend="cuda")
    environment = {**os.environ, "VISIONATTN_KERNELS": "fast"}
    run = subprocess.run([sys.executable, "-c", "import visionattn"], env=environment, capture_output=True, text=True)
    assert "VISIONATTN_KERNELS must be one of auto, torch, triton, got 'fast'" in run.stderr
