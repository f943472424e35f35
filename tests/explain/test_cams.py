"""Which layer a class activation map weights and how that lies in memory; maps themselves where grad-cam is there."""

import pytest
import timm
import torch
from explained import fill, small

from visionattn import explain


@pytest.mark.parametrize(
    "name, layer, grid, channels",
    [
        ("vit_tiny_patch16_224", "blocks.1.norm1", (4, 4), 2),
        ("vit_base_patch16_siglip_224", "norm", (4, 4), 2),
        ("swin_tiny_patch4_window7_224", "norm", (6, 6), 3),
        ("resnet10t", "layer4", (2, 2), 1),
        ("convnext_atto", "stages", (2, 2), 1),
        ("va_resnet10n_cbam", "layer4", None, 1),
    ],
)
def test_layer_and_layout(name, layer, grid, channels):
    model, x = small(name)
    found, layout = explain.cam_layer(model, x)
    assert found == layer and layout.channels == channels and grid in (None, layout.grid)


@pytest.mark.parametrize("mixer", ["swin", "davit", "pvt", "boat", "linear", "pool"])
def test_layer_of_ours(mixer):
    model, x = small(f"va_stm_{mixer}_nano")
    outputs = {}
    found, layout = explain.cam_layer(model, x)
    handle = model.get_submodule(found).register_forward_hook(lambda module, args, out: outputs.update(out=out))
    with torch.no_grad():
        model(x)
    handle.remove()
    first = layout.channels_first(outputs["out"])
    assert first.ndim == 4 and first.shape[1] == model.num_features and first.shape[2:] == layout.grid


def test_wrong_layers():
    model, x = small("resnet10t")
    with pytest.raises(ValueError, match="layer must name a module of ResNet, there is no 'layer9'"):
        explain.cam_layer(model, x, "layer9")
    with pytest.raises(ValueError, match="the output of fc is no map"):
        explain.cam_layer(model, x, "fc")
    with pytest.raises(ValueError, match=r"method must be one of gradcam, .*, got 'cam'"):
        explain.cam(model, x, method="cam")


def test_gradcam_against_its_formula():
    pytest.importorskip("pytorch_grad_cam", reason="grad-cam comes with the extra `explain`")
    model, x = small("vit_tiny_patch16_224")
    model.requires_grad_(False)
    actual = explain.cam(model, x, 3)
    outputs = []
    handle = model.blocks[1].norm1.register_forward_hook(lambda module, args, out: outputs.append(out))
    logits = model(x.requires_grad_())
    handle.remove()
    grad = torch.autograd.grad(logits[:, 3].sum(), outputs[0])[0]
    features, grads = (part[:, 1:].mT.unflatten(2, (4, 4)) for part in (outputs[0].detach(), grad))
    expected = (features * grads.mean((2, 3), keepdim=True)).sum(1).relu()
    expected = explain.min_max(explain.upsample(expected, (64, 64)))
    assert actual.shape == (2, 64, 64) and (actual - expected).abs().mean() < 0.02
    assert all(parameter.grad is None for parameter in model.parameters())


def test_every_method_runs():
    pytest.importorskip("pytorch_grad_cam", reason="grad-cam comes with the extra `explain`")
    model = fill(timm.create_model("resnet10t", num_classes=4)).train()
    for method in explain.CAMS:
        found = explain.cam(model, torch.randn(2, 3, 64, 64), [1, 2], method=method)
        assert found.shape == (2, 64, 64) and 0 <= found.min() <= found.max() <= 1
    assert model.training
