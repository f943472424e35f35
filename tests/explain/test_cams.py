"""Which layer a class activation map weights and how that lies in memory; maps themselves where grad-cam is there."""

import pytest
import torch
from explained import small

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


LAYOUTS = ["resnet10t", "vit_tiny_patch16_224", "va_stm_swin_nano"]  # (B, C, H, W), (B, N, C), (B, H, W, C)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_method_runs(name):
    model, x = small(name)
    model.train()
    before = {key: id(module) for key, module in model.named_modules()}
    for method in explain.CAMS:
        found = explain.cam(model, x, [1, 2], method=method)
        assert found.shape == x[:, 0].shape and 0 <= found.min() <= found.max() <= 1
    assert all(module.training for module in model.modules())
    assert {key: id(module) for key, module in model.named_modules()} == before


@pytest.mark.parametrize("name", LAYOUTS)
def test_ablationcam_against_its_formula(name):
    """A channel's weight is how much of the score is lost without it."""
    model, x = small(name)
    layer, layout = explain.cam_layer(model, x)
    ablated, outputs = None, []

    def change(module, args, out):
        maps = layout.channels_first(out.clone())
        outputs.append(maps.clone())
        if ablated is None:
            return None
        out = out.clone()
        layout.channels_first(out)[:, ablated] = 0
        return out

    handle = model.get_submodule(layer).register_forward_hook(change)
    with torch.no_grad():
        score = model(x)[:, 3]
        losses = []
        for ablated in range(outputs[0].shape[1]):  # noqa: B007 (read by the hook)
            losses.append((score - model(x)[:, 3]) / score)
    handle.remove()
    expected = (torch.stack(losses, 1)[..., None, None] * outputs[0]).sum(1).relu()
    expected = explain.min_max(explain.upsample(expected, x.shape[2:]))
    actual = explain.cam(model, x, 3, method="ablationcam")
    assert (actual - expected).abs().mean() < 0.02


def test_a_network_that_fails_stays_whole():
    model, x = small("resnet10t")
    with pytest.raises(ValueError, match=r"target must lie in 0\.\.9, got 10"):
        explain.cam(model, x, 10)
    calls = []

    def fail(module, args):
        calls.append(args)
        if len(calls) > 3:  # while channels are ablated
            raise RuntimeError("no more")

    handle = model.fc.register_forward_pre_hook(fail)
    layer = model.layer4
    with pytest.raises(RuntimeError, match="no more"):
        explain.cam(model, x, 1, method="ablationcam")
    handle.remove()
    assert model.layer4 is layer and not layer._forward_hooks
