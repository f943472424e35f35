"""Whole plug-ins by kernels against themselves by torch code in float64: outputs and all gradients."""

import copy
from functools import partial

import pytest
import torch
from kernels import DEVICE, LAYOUTS, close, laid_out, random
from torch.utils._python_dispatch import TorchDispatchMode

from visionattn import plugins
from visionattn.ops import use_backend

CHANNELS = 16
PLUGINS = {
    "triplet": plugins.TripletAttention,
    "cbam": plugins.CBAM,
    "cbam-channel": partial(plugins.CBAM, no_spatial=True),
    "ela": plugins.EfficientLocalAttention,
    "ela-residual": partial(plugins.EfficientLocalAttention, residual=True),
    "coord": plugins.CoordinateAttention,
    "bmta": plugins.BalancedMultiTaskAttention,
    "bam": plugins.BAM,
    "ulsam": plugins.ULSAM,
}


class Kernels(TorchDispatchMode):
    """Lists the operators with kernels that run."""

    def __init__(self):
        super().__init__()
        self.ran = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "visionattn":
            self.ran.add(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.fixture(params=PLUGINS)
def plugin(request):
    torch.manual_seed(0)
    module = PLUGINS[request.param](CHANNELS).to(DEVICE)
    with torch.no_grad():
        for parameter in module.parameters():  # no gate that starts at one half everywhere
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return module


def run(plugin, x, backend):
    plugin, x = copy.deepcopy(plugin).to(x.dtype), x.detach().requires_grad_()
    leaves = {"x": x, **dict(plugin.named_parameters())}
    with use_backend(backend), Kernels() as kernels:
        y = plugin(x)
        weight = random(*y.shape, seed=1).bfloat16().to(y.dtype)
        grads = torch.autograd.grad(y, list(leaves.values()), weight, allow_unused=True)
    assert bool(kernels.ran) == (backend == "triton")
    return {"y": y.detach()} | {name: g for name, g in zip(leaves, grads, strict=True) if g is not None}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_outputs_and_gradients(plugin, layout):
    x = laid_out(random(2, CHANNELS, 5, 7), layout)
    actual, expected = run(plugin, x, "triton"), run(plugin, x.double(), "torch")
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        if expected[name].abs().max() < 1e-12:  # biases that batch normalisation takes out again
            assert value.abs().max() < 1e-4
        else:
            close(name, value, expected[name], tolerance=5e-4)  # batch statistics of few numbers enlarge errors
    assert actual["y"].stride() == actual["x"].stride() == x.stride()


def test_mixed_precision(plugin):
    x = random(2, CHANNELS, 5, 7, dtype=torch.bfloat16)
    results = []
    for backend in ("triton", "torch"):
        with torch.autocast(DEVICE, torch.bfloat16), use_backend(backend):
            results.append(plugin(x))
    assert results[0].dtype == results[1].dtype == torch.bfloat16
    close("y", results[0], results[1].double(), tolerance=1e-2)
