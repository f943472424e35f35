"""What every mixer promises, whatever the paper: any map, any dtype, any batch, compile, export, ONNX."""

import numpy as np
import pytest
import torch

from visionattn import mixers
from visionattn.testing.fixtures import relative_error

DIM = 24
SIZES = [(1, 1), (1, 9), (7, 1), (13, 13), (17, 9)]
# How to build each for a width; heads are 8 wide.
CASES = {
    "boat": lambda **dd: mixers.FeatureSpaceLocalAttention(DIM, num_heads=3, cluster_size=8, overlap=3, **dd),
    "cswin": lambda **dd: mixers.CrossShapedWindowAttention(DIM, num_heads=4, split_size=3, **dd),
    "cswin, one branch": lambda **dd: mixers.CrossShapedWindowAttention(DIM, num_heads=3, full=True, **dd),
    "davit, channels": lambda **dd: mixers.ChannelAttention(DIM, num_heads=3, **dd),
    "davit, windows": lambda **dd: mixers.SpatialWindowAttention(DIM, num_heads=3, window_size=4, **dd),
    "dwconv": lambda **dd: mixers.DepthwiseConvMixer(DIM, **dd),
    "flatten": lambda **dd: mixers.FocusedLinearAttention(DIM, num_heads=3, grid_size=8, **dd),
    "flatten, lepe": lambda **dd: mixers.FocusedLinearAttention(DIM, num_heads=3, grid_size=8, lepe=True, **dd),
    "flatten, reduced": lambda **dd: mixers.FocusedLinearAttention(DIM, num_heads=3, grid_size=8, sr_ratio=2, **dd),
    "flatten, windows": lambda **dd: mixers.FocusedLinearAttention(DIM, num_heads=3, window_size=4, **dd),
    "halo": lambda **dd: mixers.HaloAttention(DIM, num_heads=3, block_size=4, halo_size=2, **dd),
    "lkca": lambda **dd: mixers.LargeKernelConvAttention(DIM, grid_size=8, **dd),
    "lkca, depthwise": lambda **dd: mixers.LargeKernelConvAttention(DIM, grid_size=8, groups="channels", **dd),
    "pool": lambda **dd: mixers.AveragePool(DIM, **dd),
    "spatial reduction": lambda **dd: mixers.SpatialReductionAttention(DIM, num_heads=3, sr_ratio=4, **dd),
    "spatial reduction, pooled": lambda **dd: mixers.SpatialReductionAttention(DIM, num_heads=3, pool_size=7, **dd),
    "twins, global": lambda **dd: mixers.GlobalSubsampledAttention(DIM, num_heads=3, sr_ratio=4, **dd),
    "twins, local": lambda **dd: mixers.LocallyGroupedAttention(DIM, num_heads=3, window_size=4, **dd),
    "windows": lambda **dd: mixers.WindowAttention(DIM, num_heads=3, window_size=4, **dd),
    "windows, shifted": lambda **dd: mixers.WindowAttention(DIM, num_heads=3, window_size=4, shift_size=2, **dd),
}

pytestmark = pytest.mark.parametrize("name", CASES)


def build(name, **kwargs):
    torch.manual_seed(0)
    return CASES[name](**kwargs)


def randomised(name):
    """Away from its start, where tables are zero and hide mistakes."""
    module = build(name).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.rand(parameter.shape, generator=generator))
    return module


def test_every_mixer_is_here(name):
    built = {type(CASES[case]()).__name__ for case in CASES}
    assert built == set(mixers.__all__)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("batch", [1, 3])
def test_keeps_the_shape_of_any_map(name, size, batch):
    x = torch.randn(batch, *size, DIM, requires_grad=True)
    module = build(name).train()
    out = module(x)
    assert out.shape == x.shape and out.isfinite().all()
    out.sum().backward()
    assert x.grad is None or x.grad.isfinite().all()


def test_every_parameter_gets_a_gradient(name):
    module = randomised(name).train()
    module(torch.randn(2, 9, 7, DIM, requires_grad=True)).square().sum().backward()
    assert not [key for key, p in module.named_parameters() if p.grad is None]


def test_layout_of_the_input_does_not_matter(name):
    module = randomised(name)
    x = torch.randn(2, 10, 7, DIM)
    strided = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    assert relative_error(module(strided), module(x)) < 1e-5


def test_images_of_a_batch_do_not_see_each_other(name):
    module = randomised(name)
    x = torch.randn(3, 10, 9, DIM)
    order = [2, 0, 1]
    with torch.inference_mode():
        assert relative_error(module(x[order]), module(x)[order]) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_dtype_in_is_dtype_out(name, dtype):
    module = randomised(name)
    x = torch.randn(2, 10, 7, DIM)
    expected = module(x)
    out = module.to(dtype)(x.to(dtype))
    assert out.dtype == dtype
    # In half precision BOAT may put a position into another cluster.
    bound = {torch.float64: 1e-5, torch.bfloat16: 0.2 if name == "boat" else 0.05}[dtype]
    assert relative_error(out, expected) < bound


def test_autocast(name):
    module = randomised(name)
    x = torch.randn(2, 10, 7, DIM)
    with torch.autocast("cpu", torch.bfloat16):
        out = module(x)
    assert relative_error(out, module(x)) < (0.2 if name == "boat" else 0.05)


def test_built_on_meta_with_a_dtype(name):
    module = build(name, device="meta", dtype=torch.bfloat16)
    assert {p.device.type for p in module.parameters()} <= {"meta"}
    assert {p.dtype for p in module.parameters()} <= {torch.bfloat16}
    assert module(torch.empty(2, 5, 6, DIM, device="meta", dtype=torch.bfloat16)).shape == (2, 5, 6, DIM)


def test_unknown_keywords_are_refused(name):
    with pytest.raises(TypeError, match="nonsense"):
        build(name, nonsense=1)


def test_gradcheck(name):
    module = randomised(name).double()
    x = torch.randn(2, 5, 3, DIM, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(module, (x,), fast_mode=True)


def test_exports_with_dynamic_batch(name):
    module = randomised(name)
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(module, (torch.randn(2, 9, 7, DIM),), dynamic_shapes=shapes)
    x = torch.randn(5, 9, 7, DIM)
    assert relative_error(program.module()(x), module(x)) < 1e-5


def test_compiles_as_one_graph(name):
    torch.compiler.reset()
    module = randomised(name).train()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=False)
    x = torch.randn(2, 9, 7, DIM, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    compiled(x).square().sum().backward()
    module(y).square().sum().backward()
    assert relative_error(x.grad, y.grad) < 1e-4


@pytest.mark.slow
def test_compiles_with_inductor(name):
    module = randomised(name)
    x = torch.randn(2, 8, 6, DIM)
    assert relative_error(torch.compile(module, fullgraph=True)(x), module(x)) < 1e-5


def test_onnx_agrees(name, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX parity needs the [test] extra")
    module = randomised(name)
    path = tmp_path / "mixer.onnx"
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    torch.onnx.export(module, (torch.randn(2, 9, 7, DIM),), path, dynamo=True, dynamic_shapes=shapes, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    x = torch.randn(3, 9, 7, DIM)
    (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy().astype(np.float32)})
    assert relative_error(torch.from_numpy(out), module(x)) < 1e-5
