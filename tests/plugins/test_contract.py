"""What every plug-in promises, whatever the paper: any map, any layout, any dtype, compile, export, ONNX."""

import numpy as np
import pytest
import torch

from visionattn.plugins import PLUGINS, resolve_plugin
from visionattn.testing.fixtures import relative_error

CHANNELS = 24
SIZES = [(1, 1), (1, 9), (7, 1), (2, 3), (13, 13), (17, 9), (61, 5)]

pytestmark = pytest.mark.parametrize("name", PLUGINS)


def build(name, **kwargs):
    torch.manual_seed(0)
    return resolve_plugin(name)(CHANNELS, **kwargs)


def randomised(name):
    """A block away from its start, where gates may be constant and hide mistakes."""
    module = build(name).eval()
    generator = torch.Generator().manual_seed(1)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(0.2 * torch.rand(tensor.shape, generator=generator))
    return module


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_keeps_the_shape_of_any_map(name, size, train):
    x = torch.randn(2, CHANNELS, *size, requires_grad=True)
    module = build(name).train(train)
    out = module(x)
    assert out.shape == x.shape and out.isfinite().all()
    out.sum().backward()
    assert x.grad.isfinite().all()


def test_every_parameter_gets_a_gradient(name):
    module = build(name).train()
    for parameter in module.parameters():
        torch.nn.init.uniform_(parameter, 0.1, 0.5)
    module(torch.randn(2, CHANNELS, 9, 8)).square().sum().backward()
    without = [key for key, p in module.named_parameters() if p.grad is None]
    assert not without


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("size", [(9, 8), (61, 60)], ids=str)
def test_result_can_be_changed_in_place(name, size, layout):
    x = torch.randn(2, CHANNELS, *size).to(memory_format=layout).requires_grad_()
    module = build(name).train()
    grads = []
    for shortcut in (lambda out: out.add_(x), lambda out: out + x):  # timm's residual blocks add in place
        shortcut(module(x)).square().sum().backward()
        grads.append(x.grad)
        x.grad = None
    assert relative_error(*grads) < 1e-5


def test_channels_last_goes_through(name):
    module = randomised(name)
    x = torch.randn(2, CHANNELS, 10, 7)
    out = module(x.to(memory_format=torch.channels_last))
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert relative_error(out, module(x)) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_dtype_in_is_dtype_out(name, dtype):
    module = randomised(name)
    x = torch.randn(2, CHANNELS, 10, 7)
    expected = module(x)
    out = module.to(dtype)(x.to(dtype))
    assert out.dtype == dtype
    assert relative_error(out, expected) < (0.03 if dtype == torch.bfloat16 else 1e-5)


def test_autocast(name):
    module = randomised(name)
    x = torch.randn(2, CHANNELS, 10, 7)
    with torch.autocast("cpu", torch.bfloat16):
        out = module(x)
    assert relative_error(out, module(x)) < 0.03


def test_built_on_meta_with_a_dtype(name):
    module = build(name, device="meta", dtype=torch.bfloat16)
    assert {p.device.type for p in module.parameters()} <= {"meta"}
    assert {p.dtype for p in module.parameters()} <= {torch.bfloat16}
    assert module(torch.empty(2, CHANNELS, 5, 6, device="meta", dtype=torch.bfloat16)).shape == (2, CHANNELS, 5, 6)


def test_unknown_keywords_are_refused(name):
    with pytest.raises(TypeError, match="nonsense"):
        build(name, nonsense=1)


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_gradcheck(name, train):
    module = randomised(name).double().train(train)
    x = torch.randn(2, CHANNELS, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(module, (x,), fast_mode=True)


def test_exports_with_dynamic_batch_and_size(name):
    module = randomised(name)
    dim = torch.export.Dim.AUTO
    program = torch.export.export(module, (torch.randn(2, CHANNELS, 8, 6),), dynamic_shapes=({0: dim, 2: dim, 3: dim},))
    x = torch.randn(3, CHANNELS, 11, 13)
    assert relative_error(program.module()(x), module(x)) < 1e-6


def test_compiles_as_one_graph(name):
    module = randomised(name)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    for size in ((8, 6), (9, 7)):
        x = torch.randn(2, CHANNELS, *size, requires_grad=True)
        y = x.detach().clone().requires_grad_()
        compiled(x).square().sum().backward()
        module(y).square().sum().backward()
        assert relative_error(x.grad, y.grad) < 1e-5


@pytest.mark.slow
def test_compiles_with_inductor(name):
    module = randomised(name)
    x = torch.randn(2, CHANNELS, 8, 6)
    assert relative_error(torch.compile(module, fullgraph=True)(x), module(x)) < 1e-5


def test_onnx_agrees(name, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX parity needs the [test] extra")
    module = randomised(name)
    path = tmp_path / "plugin.onnx"
    dim = torch.export.Dim.DYNAMIC
    torch.onnx.export(
        module,
        (torch.randn(2, CHANNELS, 8, 6),),
        path,
        dynamo=True,
        dynamic_shapes=({0: dim, 2: dim, 3: dim},),
        verbose=False,
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    x = torch.randn(3, CHANNELS, 11, 13)
    (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy().astype(np.float32)})
    assert relative_error(torch.from_numpy(out), module(x)) < 1e-5
