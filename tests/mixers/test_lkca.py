"""LKCA against the recorded outputs and gradients of a literal implementation, through every formulation."""

import pytest
import torch

from visionattn.mixers import LargeKernelConvAttention
from visionattn.reference.lkca import NaiveLKCA, attention_map
from visionattn.testing.fixtures import load, normal, relative_error

BACKENDS = (None, "conv", "matmul", "fft")
FIXTURES = {
    "lkca_depthwise_module_1x7x10x48_eval": "channels",
    "lkca_depthwise_module_2x14x14x64_eval": "channels",
    "lkca_heads4_module_2x14x14x64_eval": "heads",
    "lkca_shared_module_1x7x10x48_eval": "shared",
    "lkca_shared_module_2x14x14x64_eval": "shared",
}
GROUPS = {"shared": 1, "heads": 2, "channels": 8}


def bare(dim, **kwargs):
    return LargeKernelConvAttention(dim, **{"value_proj": False, "proj": False} | kwargs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", FIXTURES)
def test_golden(name, backend):
    golden = load(name)
    made = golden.meta["constructor"]
    grid = (made["H"], made["W"])
    module = bare(made["dim"], grid_size=grid, groups=FIXTURES[name], num_heads=made["kernels"], backend=backend)
    module.load_state_dict(golden.state_dict)
    x = golden.input.unflatten(1, grid).requires_grad_()
    out = module(x)
    (out.flatten(1, 2) * normal(golden.meta["input_seed"] + 1, golden.meta["input_shape"])).sum().backward()
    assert relative_error(out.flatten(1, 2), golden.arrays["out_0"]) < 1e-5
    assert relative_error(x.grad.flatten(1, 2), golden.arrays["grad_x"]) < 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("projected", [False, True], ids=["bare", "projected"])
@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("grid", [(5, 4), (1, 7), (1, 1)], ids=str)
@pytest.mark.parametrize("batch", [1, 3])
def test_agrees_with_the_naive_formulation(batch, grid, groups, projected, backend):
    torch.manual_seed(0)
    options = {"groups": groups, "num_heads": 2, "value_proj": projected, "proj": projected, "bias": projected}
    naive = NaiveLKCA(8, *grid, GROUPS[groups], value_proj=projected, bias=projected).double()
    module = LargeKernelConvAttention(8, grid_size=grid, backend=backend, dtype=torch.float64, **options)
    for parameter in naive.parameters():
        torch.nn.init.normal_(parameter)
    module.load_state_dict(naive.state_dict())
    results = []
    for mixer in (naive, module):
        x = torch.randn(batch, *grid, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        x.requires_grad_()
        out = mixer(x)
        (out * torch.linspace(0, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
        results.append([out, x.grad, *(p.grad for p in mixer.parameters())])
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_build_matrix_is_the_attention_map():
    module = bare(4, grid_size=(3, 5), groups="heads", num_heads=2)
    expected = torch.stack([attention_map(kernel[0], 3, 5) for kernel in module.kernel])
    torch.testing.assert_close(module.build_matrix(3, 5), expected)


@pytest.mark.parametrize("backend", ["conv", "matmul"])
@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("grid", [(5, 5), (3, 4), (1, 9), (8, 2)], ids=str)
def test_identity_start(grid, groups, backend):
    module = bare(8, grid_size=5, groups=groups, identity_start=True, resize="extend", backend=backend)
    x = torch.randn(2, *grid, 8)
    assert torch.equal(module(x), x)
    module.backend = "fft"
    assert relative_error(module(x), x) < 1e-6


def test_identity_start_with_projections_and_noise():
    module = LargeKernelConvAttention(8, grid_size=5, identity_start=True)
    x = torch.randn(2, 5, 5, 8)
    torch.testing.assert_close(module(x), module.proj(module.v(x)))
    torch.manual_seed(0)
    kernel = bare(8, identity_start=True, init_std=0.02).kernel
    assert kernel[0, 0, 13, 13] > 0.8 and 0.015 < kernel.flatten()[:300].std() < 0.025


def test_start_keeps_the_variance():
    torch.manual_seed(0)
    for module in (bare(256, groups="channels", grid_size=9), bare(256, groups="channels", kernel_size=5)):
        assert 0.6 < module(torch.randn(4, 9, 9, 256)).var() < 1.2


@pytest.mark.parametrize("resize", ["interpolate", "extend"])
def test_smaller_grids_take_the_centre(resize):
    torch.manual_seed(0)
    module = bare(4, grid_size=6, resize=resize)
    cropped = bare(4, grid_size=(4, 1))
    cropped.kernel.data = module.kernel.data[:, :, 2:-2, 5:6]
    x = torch.randn(2, 4, 1, 4)
    torch.testing.assert_close(module(x), cropped(x))


def test_larger_grids():
    torch.manual_seed(0)
    module = bare(4, grid_size=3, resize="extend")
    fixed = bare(4, kernel_size=5)
    fixed.load_state_dict(module.state_dict())
    x = torch.randn(2, 7, 5, 4)
    torch.testing.assert_close(module(x), fixed(x))
    assert module.build_matrix(7, 5)[0, 0, -1] == 0
    module.resize = "interpolate"
    assert module.build_matrix(7, 5)[0, 0, -1] != 0
    assert relative_error(module(x), fixed(x)) > 0.01
    for grid in ((3, 3), (3, 2), (1, 1)):
        part = x[:, : grid[0], : grid[1]]
        torch.testing.assert_close(module(part), fixed(part))


def test_interpolation_keeps_the_level_of_constant_maps():
    torch.manual_seed(0)
    module = bare(1, grid_size=6).double()
    module.kernel.data = torch.rand(1, 1, 11, 11, dtype=torch.float64)
    small, large = (module(torch.ones(1, side, side, 1, dtype=torch.float64)) for side in (6, 24))
    assert abs(small.mean() / large.mean() - 1) < 0.05


def test_a_kernel_size_given_stays():
    module = bare(4, kernel_size=(3, 5), grid_size=99)
    assert module.kernel.shape == (1, 1, 3, 5)
    torch.testing.assert_close(module(torch.ones(1, 9, 9, 4))[0, 4, 4], module.kernel.sum().expand(4))


@pytest.mark.parametrize(
    "groups", [name if name == "heads" else pytest.param(name, marks=pytest.mark.slow) for name in GROUPS]
)
def test_compiles_for_sizes_that_change(groups):
    torch.manual_seed(0)
    module = LargeKernelConvAttention(16, grid_size=5, groups=groups, num_heads=2)
    torch.compiler.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    for size in ((9, 3), (4, 4), (5, 6)):
        x = torch.randn(2, *size, 16, requires_grad=True)
        (grad,) = torch.autograd.grad(module(x).square().sum(), x)
        assert relative_error(torch.autograd.grad(compiled(x).square().sum(), x)[0], grad) < 1e-5


@pytest.mark.parametrize("size", [(3, 3), (8, 5), (28, 28)], ids=str)
@pytest.mark.parametrize("groups", GROUPS)
def test_built_on_meta_with_a_dtype(groups, size):
    options = {"groups": groups, "num_heads": 2, "bias": True, "identity_start": True}
    module = LargeKernelConvAttention(8, device="meta", dtype=torch.bfloat16, **options)
    assert {(p.device.type, p.dtype) for p in module.parameters()} == {("meta", torch.bfloat16)}
    x = torch.empty(2, *size, 8, device="meta", dtype=torch.bfloat16)
    assert module(x).shape == x.shape


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 0}, "dim must be at least 1, got 0"),
        ({"groups": "all"}, "groups must be one of shared, heads, channels, got 'all'"),
        ({"groups": "heads", "num_heads": 3}, "dim=8, num_heads=3"),
        ({"grid_size": 0}, "grid_size must be one integer or two .height, width., at least 1, got 0"),
        ({"grid_size": (3, 3, 3)}, "grid_size"),
        ({"kernel_size": 4}, "kernel_size must be odd, got 4"),
        ({"kernel_size": (3, -1)}, "kernel_size"),
        ({"resize": "crop"}, "resize must be one of interpolate, extend, got 'crop'"),
        ({"backend": "cuda"}, "backend must be one of None, conv, matmul, fft, got 'cuda'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        LargeKernelConvAttention(**{"dim": 8} | arguments)


def test_unknown_keywords_are_refused():
    with pytest.raises(TypeError, match="nonsense"):
        LargeKernelConvAttention(8, nonsense=1)
