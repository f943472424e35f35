"""The plug-ins of super-resolution, efficient attention, U-GAT-IT and CSA in networks of timm and torchvision."""

import pytest
import timm
import torch
import torchvision
from torch import nn

import visionattn
from visionattn.plugins import EfficientAttention, timm_layer
from visionattn.plugins._attached import ZeroInitGate
from visionattn.testing.fixtures import relative_error

PLUGINS = ("a2n", "csam", "efficientattention", "lam", "pixelattention", "cam", "csa")
# One of each family, narrow ones; widths that few numbers divide are among them.
NETWORKS = (
    *("resnet18", "resnetv2_18", "resnext26ts", "regnety_002", "convnext_atto", "densenet121", "efficientnet_b0"),
    *("mobilenetv2_050", "mobilenetv3_small_050", "ghostnet_050", "hgnetv2_b0", "vgg11_bn", "dla46_c", "rexnet_100"),
    *("cs3darknet_s", "va_resnet10n"),
    *("torchvision/resnet18", "torchvision/mobilenet_v2", "torchvision/mobilenet_v3_small", "torchvision/densenet121"),
)


def network(name):
    torch.manual_seed(0)
    library, _, model = name.rpartition("/")
    arguments = {"mlp_ratio": 0.01} if "vgg" in name else {}
    create = torchvision.models.get_model if library else timm.create_model
    model = create(model, num_classes=10, **arguments).eval()
    for key, parameter in model.named_parameters():
        if parameter.ndim == 1 and not key.endswith("bias"):  # branches that start near zero would hide mistakes
            nn.init.uniform_(parameter, 0.6, 1.2)
    return model


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_change_only_with_the_factor(name):
    """Each plug-in in another stage, by turns in its blocks and at its end."""
    model, x = network(name), torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = model(x)
    for number, plugin in enumerate(PLUGINS):
        stage = number % 4
        if plugin == "a2n":  # convolutions as wide as the last stage take long
            stage = 0
        where = "stage_end" if number % 2 else "block_end"
        fresh = network(name)
        visionattn.attach(fresh, plugin, where, stages=stage)
        assert fresh.attached and {place.stage for place in fresh.attached} == {stage}
        gates = [module for module in fresh.modules() if isinstance(module, ZeroInitGate)]
        assert len(gates) == len(fresh.attached)
        with torch.no_grad():
            assert torch.equal(fresh(x), before), plugin
            for gate in gates:
                gate.gamma.fill_(0.5)
                for key, parameter in gate.block.named_parameters():
                    if key == "gamma":  # HAN's own, which starts at zero too
                        parameter.fill_(1.0)
        out = fresh(x)
        assert out.isfinite().all() and relative_error(out, before) > 1e-6, plugin
        out.sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for gate in gates for p in gate.parameters()), plugin


@pytest.mark.parametrize("plugin", ["lam", "csam", {"type": "efficientattention", "zero_init_last": True}], ids=str)
def test_what_starts_as_the_identity_needs_no_factor(plugin):
    model, x = network("resnet18"), torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        before = model(x)
        assert torch.equal(visionattn.attach(model, plugin, "stage_end", start="paper")(x), before)


@pytest.mark.parametrize("plugin", [*PLUGINS, "bmta"])
def test_timm_s_own_doors(plugin):
    cls = visionattn.plugins.resolve_plugin(plugin)
    for name, arguments in (
        ("resnet18", {"block_args": {"attn_layer": cls}}),
        ("efficientnet_b0", {"se_layer": timm_layer(plugin)}),
    ):
        model = timm.create_model(name, device="meta", **arguments)
        assert any(isinstance(module, cls) for module in model.modules())
        assert model(torch.empty(1, 3, 64, 64, device="meta")).shape == (1, 1000)


def test_arguments_that_do_not_fit_leave_the_network_alone():
    model = timm.create_model("resnet18", device="meta")
    with pytest.raises(ValueError, match=r"head_count must divide key_channels .* head_count=3, key_channels=64"):
        visionattn.attach(model, EfficientAttention, head_count=3, key_channels=64)
    assert not hasattr(model, "attached")


def test_layers_that_do_not_divide_a_width_are_named_at_the_first_call():
    model = visionattn.attach(network("resnet18"), "lam", layers=5)
    with pytest.raises(ValueError, match="layers must divide the width of the map, got layers=5 and 64 channels"):
        model(torch.randn(1, 3, 32, 32))
