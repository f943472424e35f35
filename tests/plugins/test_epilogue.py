"""Residual blocks that leave addition and ReLU to the plug-in: numbers, gradients, state dict as in timm's blocks."""

import copy

import pytest
import timm
import torch
from timm.models import ResNet
from timm.models.resnet import BasicBlock, Bottleneck

from visionattn import attach
from visionattn.plugins import _epilogue, list_plugins
from visionattn.plugins._epilogue import FusedBasicBlock, FusedBottleneck, fuse_epilogue
from visionattn.plugins._resolve import resolve_plugin

FUSING = ["cbam", "triplet", "coord", "bmta", "ulsam", "ela_b"]
LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}


def block(kind, plugin, width=32, seed=0):
    torch.manual_seed(seed)
    made = kind(width, width // kind.expansion, attn_layer=resolve_plugin(plugin))
    for parameter in made.parameters():  # no gate that is the same everywhere
        parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    return made.double()


def step(module, x, weight):
    x = x.detach().requires_grad_()
    y = module(x)
    leaves = {"x": x, **dict(module.named_parameters())}
    grads = torch.autograd.grad(y, list(leaves.values()), weight)
    return {"y": y.detach(), **dict(zip(leaves, grads, strict=True))}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("plugin", FUSING)
@pytest.mark.parametrize("kind", [BasicBlock, Bottleneck], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("side", [13, 48], ids=["formula", "passes"])
def test_blocks_have_timms_numbers(kind, plugin, layout, side):
    plain = block(kind, plugin).to(memory_format=LAYOUTS[layout])
    ours = block(kind, plugin, seed=1)
    fuse_epilogue(ours)
    assert ours.state_dict().keys() == plain.state_dict().keys()
    ours.load_state_dict(plain.state_dict())
    x = torch.randn(2, 32, side, side, dtype=torch.float64).to(memory_format=LAYOUTS[layout])
    weight = torch.randn_like(x)
    assert ours._fusing_plugin() is ours.se
    expected, actual = step(plain, x, weight), step(ours, x, weight)
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, msg=lambda text, name=name: f"{name}: {text}")
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value)


@pytest.mark.parametrize("name", sorted(list_plugins()))
def test_every_plugin_that_says_so_fuses(name):
    try:
        plugin = resolve_plugin(name)(32).double()
    except TypeError:
        return  # takes a second input
    if not getattr(plugin, "fuses_residual", False):
        return
    assert name in {*FUSING, "ela_l", "ela_s", "ela_t"}
    x, residual = (torch.randn(2, 32, 48, 44, dtype=torch.float64) for _ in range(2))
    plugin.eval()
    torch.testing.assert_close(plugin(x, residual=residual, relu=True), (plugin(x) + residual).relu())
    torch.testing.assert_close(plugin(x, residual=residual), plugin(x) + residual)


def test_the_plain_block_runs_where_something_stands_between():
    ours = block(FusedBottleneck, "cbam")
    assert ours._fusing_plugin() is ours.se
    seen = []
    handle = ours.act3.register_forward_hook(lambda *_: seen.append(1))
    assert ours._fusing_plugin() is None
    ours(torch.randn(2, 32, 8, 8, dtype=torch.float64))
    assert seen
    handle.remove()
    ours.drop_path = timm.layers.DropPath(0.5)
    assert ours.train()._fusing_plugin() is None and ours.eval()._fusing_plugin() is ours.se
    ours.drop_path, ours.act3 = None, torch.nn.LeakyReLU()
    assert ours._fusing_plugin() is None
    assert block(FusedBasicBlock, "simam")._fusing_plugin() is None


def test_networks_use_it(monkeypatch):
    calls = []
    fusing = _epilogue._FusedEpilogue._fusing_plugin
    monkeypatch.setattr(
        _epilogue._FusedEpilogue, "_fusing_plugin", lambda self: calls.append(fusing(self)) or calls[-1]
    )
    timm.create_model("va_resnet50_coord")(torch.randn(1, 3, 64, 64))
    assert len(calls) == 16 and all(call is not None for call in calls)


@pytest.mark.parametrize("start", ["paper", "identity"])
def test_attached_networks_keep_their_outputs(start):
    torch.manual_seed(0)
    network = timm.create_model("resnet18", num_classes=3)
    keys = [*network.state_dict()]
    x = torch.randn(2, 3, 64, 64)
    plain = network.eval()(x)
    attached = attach(network, "coord", start=start)
    blocks = [module for module in attached.modules() if isinstance(module, FusedBasicBlock)]
    assert len(blocks) == 8 and isinstance(attached, ResNet)
    assert all((b._fusing_plugin() is not None) == (start == "paper") for b in blocks)
    assert set(keys) <= set(attached.state_dict())
    fused = attached(x)
    for b in blocks:
        b.__class__ = BasicBlock
    torch.testing.assert_close(attached(x), fused)
    if start == "identity":
        torch.testing.assert_close(fused, plain, rtol=0, atol=0)
    copy.deepcopy(attached)
