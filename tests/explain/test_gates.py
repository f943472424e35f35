"""The factors of gating blocks: what they are called, and that they make the block's output."""

import pytest
import timm
import torch
from explained import fill

from visionattn import explain
from visionattn.plugins import PKCAM, list_plugins, resolve_plugin

SHAPES = {"channel": (2, 16, 1, 1), "rows": (2, 16, 7, 1), "columns": (2, 16, 1, 6)}


@pytest.mark.parametrize("name", [name for name in list_plugins() if hasattr(resolve_plugin(name)(16), "gates")])
def test_factors_make_the_output(name):
    block = fill(resolve_plugin(name)(16))
    x = torch.randn(2, 16, 7, 6)
    with torch.no_grad():
        factors = block.gates(x)
        torch.testing.assert_close(total(factors) * x, block(x), rtol=1e-4, atol=1e-5)
    for key, factor in factors.items():
        assert factor.shape == SHAPES.get(key, factor.shape), key
        if key == "spatial":
            assert factor.shape in ((2, 1, 7, 6), (2, 4, 7, 6))


def total(factors):
    if "gate" in factors:
        return factors["gate"]
    product = torch.ones(())
    for factor in factors.values():
        product = product * factor
    return product


def test_all_plugins_of_papers_with_gates_have_them():
    named = {name for name in list_plugins() if hasattr(resolve_plugin(name)(16), "gates")}
    assert {"bam", "bmta", "cbam", "coord", "ela_b", "ela_l", "simam", "triplet", "ulsam"} <= named


def test_pkcam():
    block, x = fill(PKCAM(16, block_count=1)), torch.randn(2, 16, 5, 5)
    earlier = [torch.randn(2, 16)]
    with torch.no_grad():
        torch.testing.assert_close(block.gates(x, block=earlier)["channel"] * x, block(x, block=earlier)[0])


@pytest.mark.parametrize(
    "name, place, names",
    [
        ("va_resnet10n_cbam", "layer1.0.attn", ["channel", "spatial"]),
        ("va_resnet10n_coord", "layer1.0.attn", ["rows", "columns"]),
        ("va_resnet10n_se", "layer1.0.attn", ["channel"]),
        ("va_resnet10n_eca", "layer1.0.attn", ["channel"]),
        ("seresnet18", "layer2.1.se", ["channel"]),
    ],
)
def test_of_a_network(name, place, names):
    model = fill(timm.create_model(name, num_classes=10)).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    x = torch.randn(2, 3, 64, 64)
    found = explain.gates(model, x)
    inside = next(key for key in found if key.startswith("layer1.0")) if place not in found else place
    assert list(found[inside]) == names
    assert all(factor.shape[0] == 2 and factor.ndim == 4 for factor in found[inside].values())
    assert model.training and all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_without_gates():
    with pytest.raises(ValueError, match=r"ResNet has no gating blocks: use explain\.cam"):
        explain.gates(timm.create_model("resnet10t"), torch.zeros(1, 3, 32, 32))
