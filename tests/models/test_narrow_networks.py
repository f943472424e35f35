"""The narrow networks that are compared: of one size, and alike but for their attention."""

import math

import pytest
import timm
import torch
from timm.layers import EcaModule, SEModule

import visionattn  # noqa: F401

NETWORKS = [*timm.list_models("va_resnet10n*"), *timm.list_models("va_resnet18n*")]


def test_all_are_of_one_size():
    sizes = {
        name: sum(p.numel() for p in timm.create_model(name, num_classes=10, device="meta").parameters())
        for name in [*NETWORKS, *timm.list_models("va_stm_*_nano"), *timm.list_models("va_vit_*_nano")]
    }
    # Mechanisms with more projections or convolutions than softmax attention has, of which the hosts take no account.
    more = dict.fromkeys(("chela", "dual_attention", "isab", "mega", "mvpa", "regla"), 700_000) | {"a2n": 1_200_000}
    for name, size in sizes.items():
        most = next((most for part, most in more.items() if f"_{part}" in name), 440_000)
        assert 270_000 < size < most, f"{name} has {size:,} parameters"


@pytest.mark.parametrize(("name", "layer"), [("va_resnet10n_se", SEModule), ("va_resnet10n_eca", EcaModule)])
def test_timms_layer_is_in_every_block(name, layer):
    model = timm.create_model(name)
    stages = (model.layer1, model.layer2, model.layer3, model.layer4)
    assert [type(block.se) for stage in stages for block in stage] == [layer] * 4


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in ("va_resnet10n", "va_resnet18n")])
def test_differs_from_its_host_by_its_attention_only(name):
    host = timm.create_model(name.rpartition("_")[0] if name.count("_") == 2 else "va_resnet10n", device="meta")
    model = timm.create_model(name, device="meta")
    own = {key: value.shape for key, value in model.state_dict().items() if ".se." not in key and ".bam." not in key}
    assert own == {key: value.shape for key, value in host.state_dict().items()}
    features = timm.create_model(name, features_only=True, device="meta").feature_info
    assert features.reduction() == [2, 4, 8, 16]


@pytest.mark.parametrize(("name", "official"), [("va_resnet18n_pkcam", False), ("va_resnet18_pkcam", True)])
def test_pkcam_starts_as_what_it_is_compared_with(name, official):
    """The narrow one as its plain host, by fan-out; the published one as the official code, by PyTorch's default."""
    torch.manual_seed(0)
    weight = timm.create_model(name).layer4[1].conv1.weight
    by_fan_out = math.sqrt(2 / (9 * weight.shape[0]))
    by_default = math.sqrt(1 / (3 * 9 * weight.shape[1]))
    assert weight.std().item() == pytest.approx(by_default if official else by_fan_out, rel=0.05)
