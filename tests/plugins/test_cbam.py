"""CBAM against the official code's recorded outputs, gradients and running statistics."""

from importlib import import_module

import pytest
import torch

from visionattn.models.builder import rename_keys
from visionattn.plugins import CBAM
from visionattn.reference.cbam import NaiveCBAM
from visionattn.testing.fixtures import check_module, load, relative_error

FIXTURES = {
    "cbam_module_2x64x14x14_eval": {},
    "cbam_module_2x64x14x14_train": {},
    "cbam_module_1x48x17x9_eval": {},
    "cbam_module_1x48x17x9_train": {},
    "cbam_module_lplse_2x64x14x14_eval": {"pool_types": ("avg", "max", "lp", "lse")},
    "cbam_module_nospatial_2x64x14x14_eval": {"no_spatial": True},
}


@pytest.fixture(params=[True, False], ids=["by hand", "plain"])
def by_hand(request, monkeypatch):
    """Small maps take the plain formulas otherwise."""
    if request.param:
        for module in ("axis_gate", "eager.nested_gate"):
            monkeypatch.setattr(import_module(f"visionattn.ops.{module}"), "_WORTHWHILE", 1)


@pytest.mark.usefixtures("by_hand")
@pytest.mark.parametrize("name", FIXTURES)
def test_golden(name):
    golden = load(name)
    module = CBAM(golden.meta["constructor"]["channels"], **FIXTURES[name])
    loaded = module.load_state_dict(rename_keys(golden.state_dict, CBAM.official_keys), strict=False)
    assert loaded.unexpected_keys == [] and all(k.endswith("num_batches_tracked") for k in loaded.missing_keys)
    check_module(module, golden, 1e-5)
    for key, expected in golden.meta.get("buffers_after", {}).items():
        actual = module.get_buffer(key.replace("SpatialGate.spatial", "spatial_gate"))
        torch.testing.assert_close(actual, torch.tensor(expected), rtol=1e-5, atol=0)


@pytest.mark.usefixtures("by_hand")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("size", [(32, 14, 14), (48, 9, 20)], ids=str)
def test_agrees_with_the_naive_formulation(size, train, layout):
    torch.manual_seed(0)
    naive, module = NaiveCBAM(size[0]), CBAM(size[0])
    for parameter in naive.parameters():
        torch.nn.init.normal_(parameter)
    module.load_state_dict(naive.state_dict())
    naive.double().train(train), module.double().train(train)
    results = []
    for block in (naive, module):
        x = torch.randn(3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        x = x.relu_().to(memory_format=layout).requires_grad_()
        out = block(x)
        (out * torch.linspace(0, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
        results.append([out, x.grad, *(p.grad for p in block.parameters()), *block.buffers()])
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
    naive.float().eval(), module.float().eval()
    with torch.inference_mode():
        assert relative_error(module(x.float()), naive(x.float())) < 2e-6


def test_starts_as_the_paper_does():
    module = CBAM(64)
    assert module.spatial_gate.bn.weight.item() == 0
    assert module.spatial_gate.bn.momentum == 0.01
    assert not module.channel_gate.fc1.bias.any() and not module.channel_gate.fc2.bias.any()
    x = torch.randn(2, 64, 5, 5)
    torch.testing.assert_close(module(x), 0.5 * module.channel_gate(x))


def test_narrow_maps_keep_one_hidden_unit():
    assert CBAM(3, reduction=16).channel_gate.fc1.out_features == 1


def test_gradient_of_ties_goes_to_the_first():
    x = torch.zeros(1, 1, 2, 2, requires_grad=True)
    gate = CBAM(1, pool_types=("max",), no_spatial=True)
    gate.channel_gate.fc1.weight.data.fill_(1)
    gate.channel_gate.fc1.bias.data.fill_(1)
    gate.channel_gate.fc2.weight.data.fill_(1)
    gate(x + torch.ones(())).sum().backward()
    assert x.grad.flatten().unique().numel() == 2 and x.grad.argmax() == 0


def test_zero_maps_have_finite_gradients():
    x = torch.zeros(1, 16, 3, 3, requires_grad=True)
    CBAM(16, pool_types=("avg", "max", "lp", "lse"))(x).sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": 0}, "channels must be at least 1, got 0"),
        ({"channels": 8, "reduction": 0}, "reduction must be at least 1, got 0"),
        ({"channels": 8, "kernel_size": 4}, "kernel_size must be a positive odd number, got 4"),
        ({"channels": 8, "pool_types": ("median",)}, "median"),
        ({"channels": 8, "pool_types": ()}, "at least one"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        CBAM(**arguments)
