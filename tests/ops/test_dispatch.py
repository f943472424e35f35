"""Which backend an operation takes, over devices, dtypes, sizes and wishes; fake tensors stand for a GPU's."""

import os
import subprocess
import sys
from types import ModuleType

import pytest
import torch
from torch._subclasses import FakeTensorMode

from visionattn.ops import _dispatch
from visionattn.ops._dispatch import Choice, explain, has_kernel, use_backend

LARGE = (8, 256, 56, 56)


@pytest.fixture
def op(monkeypatch):
    """An operation with a kernel that takes dense maps, on a machine that passes for one with a GPU."""
    kernels = ModuleType("visionattn.ops.triton.example")
    kernels.doubled = lambda x: "the kernel ran"
    monkeypatch.setitem(sys.modules, kernels.__name__, kernels)
    monkeypatch.setattr(_dispatch, "_without_gpu", lambda index: "")

    @has_kernel("example", lambda x: "" if x.is_contiguous() else "the map is not dense")
    def doubled(x):
        """Twice the map."""
        return x * 2

    return doubled


def on_gpu(shape=LARGE, dtype=torch.bfloat16):
    with FakeTensorMode():
        return torch.empty(shape, dtype=dtype, device="cuda")


def test_a_gpu_takes_kernels_where_they_pay(op):
    assert explain(op, on_gpu()).backend == "triton"
    assert op(on_gpu()) == "the kernel ran"
    assert explain(op, on_gpu((1, 8, 7, 7))) == Choice(
        "torch", "the map is smaller than 4 MB, where launches count more than bytes"
    )
    assert op(on_gpu((1, 8, 7, 7)), backend="triton") == "the kernel ran"


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
    assert _dispatch._without_gpu(0) == "" if torch.cuda.is_available() else "there is no CUDA device"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    assert _dispatch._without_gpu(0) == "kernels need compute capability 8.0"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert _dispatch._without_gpu(0) == "Triton is not installed"


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
