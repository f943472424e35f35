"""Attaching plug-ins to networks: exact at the start, complete, reversible in the state dict, whatever the family."""

import copy
import io
from functools import cache

import pytest
import timm
import torch
import torchvision
from timm.utils import reparameterize_model
from torch import nn
from torchvision.models.resnet import BasicBlock

import visionattn
from visionattn.plugins import CBAM, timm_layer
from visionattn.plugins._attached import ZeroInitGate
from visionattn.plugins.attach import Places
from visionattn.testing.contracts import perturbed

# Network -> its class of blocks, number of stages and arguments.
NETWORKS = {
    "resnet18": ("BasicBlock", 4, {"drop_path_rate": 0.1}),
    "resnetv2_18": ("PreActBasic", 4, {"drop_path_rate": 0.1}),
    "resnext26ts": ("BottleneckBlock", 4, {}),
    "resnext50_32x4d": ("Bottleneck", 4, {}),
    "regnetx_002": ("Bottleneck", 4, {}),
    "regnety_002": ("Bottleneck", 4, {"drop_path_rate": 0.1}),
    "convnext_atto": ("ConvNeXtBlock", 4, {"drop_path_rate": 0.1}),
    "densenet121": ("DenseLayer", 4, {}),
    "efficientnet_b0": ("DepthwiseSeparableConv InvertedResidual", 5, {"drop_path_rate": 0.1}),
    "test_efficientnet": ("ConvBnAct EdgeResidual InvertedResidual", 4, {}),
    "mobilenetv2_050": ("DepthwiseSeparableConv InvertedResidual", 5, {}),
    "mobilenetv3_small_050": ("DepthwiseSeparableConv InvertedResidual", 4, {}),
    "ghostnet_050": ("GhostBottleneck", 4, {}),
    "hgnet_tiny": ("HighPerfGpuBlock", 4, {}),
    "hgnetv2_b0": ("HighPerfGpuBlock", 4, {"drop_path_rate": 0.1}),
    "vgg11": ("Conv2d", 5, {"mlp_ratio": 0.01}),
    "vgg11_bn": ("Conv2d", 5, {"mlp_ratio": 0.01}),
    "dla46_c": ("DlaBottleneck", 4, {}),
    "rexnet_100": ("LinearBottleneck", 5, {"drop_path_rate": 0.1}),
    "cspresnet50": ("BottleneckBlock", 4, {}),
    "cs3darknet_s": ("DarkBlock", 4, {"drop_path_rate": 0.1}),
    "torchvision/resnet18": ("BasicBlock", 4, {}),
    "torchvision/mobilenet_v2": ("InvertedResidual", 5, {}),
    "torchvision/mobilenet_v3_small": ("InvertedResidual", 4, {}),
}
every_network = pytest.mark.parametrize("name", NETWORKS)
either_end = pytest.mark.parametrize("where", ["block_end", "stage_end"])


def settled(model):
    """A network away from its start, where a branch may be zero and hide mistakes."""
    for key, tensor in model.state_dict().items():
        if key.endswith(("running_mean", "bias")):
            tensor.uniform_(-0.2, 0.2)
        elif tensor.ndim == 1:
            tensor.uniform_(0.6, 1.2)
    return model.eval()


@cache
def built(name):
    torch.manual_seed(0)
    library, _, model = name.rpartition("/")
    create = torchvision.models.get_model if library else timm.create_model
    return settled(create(model, num_classes=10, **NETWORKS.get(name, (None, None, {}))[2]))


def network(name):
    return copy.deepcopy(built(name))


def image(batch=1, size=32):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def gammas(model):
    return [module.gamma for module in model.modules() if isinstance(module, ZeroInitGate)]


@torch.no_grad()
def output(model):
    return model(image())


def blocks(name, model):
    sought = model.features if "vgg" in name else model
    found = [m for m in sought.modules() if type(m).__name__ in NETWORKS[name][0].split()]
    # A plain convolution counts only if it has a shortcut.
    return [m for m in found if type(m).__name__ != "ConvBnAct" or m.has_skip]


@every_network
def test_every_block_gets_one_and_no_output_changes(name):
    model = network(name)
    before, count = output(model), len(blocks(name, model))
    assert visionattn.attach(model, "cbam") is model
    assert torch.equal(output(model), before)
    assert len(model.attached) == len(gammas(model)) == count
    stages = [place.stage for place in model.attached]
    assert stages == sorted(stages) and set(stages) == set(range(NETWORKS[name][1]))


@every_network
def test_every_stage_gets_one_and_no_output_changes(name):
    model = network(name)
    before = output(model)
    visionattn.attach(model, "cbam", "stage_end")
    assert torch.equal(output(model), before)
    assert [place.stage for place in model.attached] == list(range(NETWORKS[name][1]))


# Families whose widths suit every plug-in.
FAMILIES = ("resnet18", "regnety_002", "convnext_atto", "efficientnet_b0", "vgg11_bn", "dla46_c")
FAMILIES += ("torchvision/resnet18", "torchvision/mobilenet_v3_small")


@pytest.mark.parametrize("name", FAMILIES)
def test_every_plugin_serves_every_family_and_changes_nothing_at_first(name):
    before = output(network(name))
    for plugin in visionattn.list_plugins():
        model = visionattn.attach(network(name), plugin, "stage_end")
        assert torch.equal(output(model), before), plugin
        assert [place.stage for place in model.attached] == list(range(NETWORKS[name][1])), plugin
        for place in model.attached:
            perturbed(model.get_submodule(place.name))
        found = output(model)
        assert found.isfinite().all() and not torch.equal(found, before), plugin


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "efficientnet_b0", "hgnetv2_b0", "rexnet_100"])
def test_identity_start_changes_no_training_output(name):
    outputs = []
    for model in (network(name), visionattn.attach(network(name), "cbam")):
        torch.manual_seed(0)
        outputs.append(model.train()(image(2)))
    assert torch.equal(*outputs)


@every_network
def test_gradients_reach_every_place(name):
    model = visionattn.attach(network(name), "cbam")
    model(image()).square().sum().backward()
    assert all(gamma.grad.count_nonzero() for gamma in gammas(model))
    with torch.no_grad():
        for gamma in gammas(model):
            gamma -= 0.1 * gamma.grad.sign()
    model.zero_grad()
    model(image()).square().sum().backward()
    for place in model.attached:
        grads = [p.grad for p in model.get_submodule(place.name).block.parameters()]
        assert any(grad.count_nonzero() for grad in grads)


@pytest.mark.parametrize(
    ("name", "where"),
    [(name, "block_end") for name in ("resnet18", "densenet121", "efficientnet_b0", "ghostnet_050", "hgnetv2_b0")]
    + [(name, "block_end") for name in ("vgg11_bn", "dla46_c", "rexnet_100")]
    + [(name, "block_end") for name in NETWORKS if name.startswith("torchvision")]
    + [(name, "stage_end") for name in ("resnet18", "convnext_atto", "densenet121", "torchvision/resnet18")],
)
def test_weights_load_before_and_after(name, where):
    plain = network(name)
    model = visionattn.attach(network(name), "cbam", where)
    for gamma in gammas(model):
        nn.init.constant_(gamma, 0.5)
    saved = copy.deepcopy(model.state_dict())
    added = {key for key in saved if any(key.startswith(f"{place.name}.") for place in model.attached)}
    assert set(saved) - added == set(plain.state_dict())
    assert all(torch.equal(saved[key], value) for key, value in plain.state_dict().items())

    fresh = visionattn.attach(network(name), "cbam", where)
    for tensor in fresh.state_dict().values():
        tensor.zero_()
    fresh.load_state_dict(saved)
    assert all(torch.equal(value, saved[key]) for key, value in fresh.state_dict().items())

    loaded = fresh.load_state_dict(plain.state_dict(), strict=False)
    # Counters of batch normalisation may be missing.
    added = {key for key in added if not key.endswith("num_batches_tracked")}
    assert loaded.unexpected_keys == [] and set(loaded.missing_keys) - added == set()


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("ghostnetv2_100", 16),
        ("ghostnetv3_050", 16),
        ("repghostnet_050", 16),
        ("dla60_res2net", 16),
        ("legacy_seresnet18", 8),
        ("nf_regnet_b0", 16),
        ("torchvision/densenet121", 58),
        ("torchvision/mnasnet0_5", 16),
        ("torchvision/convnext_tiny", 18),
        ("torchvision/vgg11_bn", 8),
    ],
)
def test_relatives_of_the_families(name, count):
    library, _, network = name.rpartition("/")
    with torch.device("meta"):
        model = torchvision.models.get_model(network) if library else timm.create_model(network)
    assert len(visionattn.attach(model, "cbam").attached) == count


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "dla46_c", "torchvision/mobilenet_v2"])
def test_paper_start_is_the_bare_block(name):
    model = network(name)
    before = output(model)
    visionattn.attach(model, "cbam", start="paper")
    assert all(type(model.get_submodule(place.name)) is CBAM for place in model.attached)
    assert not torch.equal(output(model), before)


def test_paper_start_equals_timm_s_own_door():
    ours = visionattn.attach(timm.create_model("resnet18"), "cbam", start="paper").eval()
    theirs = timm.create_model("resnet18", block_args={"attn_layer": CBAM}).eval()
    state = {key.replace(".drop_path.plugin.", ".se."): value for key, value in ours.state_dict().items()}
    theirs.load_state_dict(state)
    assert torch.equal(output(theirs), output(ours))


def test_comes_after_squeeze_excitation_and_before_drop_path():
    block = visionattn.attach(network("seresnet18"), "cbam").layer1[0]
    steps = []
    for name, module in block.named_children():
        module.register_forward_hook(lambda *_, name=name: steps.append(name))
    block(torch.randn(1, 64, 8, 8))
    assert steps.index("bn2") < steps.index("se") < steps.index("drop_path") < steps.index("act2")
    drop_path = visionattn.attach(network("resnet18"), "cbam").layer4[1].drop_path
    assert [name for name, _ in drop_path.named_children()] == ["plugin", "module"]


def test_stages_are_chosen_by_number():
    names = [place.name for place in visionattn.attach(network("resnet18"), "cbam", stages=(1, -1)).attached]
    assert [name.split(".")[0] for name in names] == ["layer2", "layer2", "layer4", "layer4"]
    model = visionattn.attach(network("torchvision/resnet18"), "cbam", stages=0)
    assert {place.name.split(".")[0] for place in model.attached} == {"layer1"}


def test_several_plugins_in_one_network():
    model = network("resnet18")
    visionattn.attach(model, "cbam", stages=0, reduction=8)
    visionattn.attach(model, {"type": "cbam", "no_spatial": True}, stages=[1, 2])
    visionattn.attach(model, CBAM, where="stage_end")
    assert [place.stage for place in model.attached] == [0, 0, 1, 1, 2, 2, 0, 1, 2, 3]
    assert model.get_submodule(model.attached[0].name).block.channel_gate.fc1.out_features == 8
    assert model.get_submodule(model.attached[2].name).block.spatial_gate is None


def test_prints_a_table():
    model = visionattn.attach(network("resnet18"), "cbam", stages=3)
    assert isinstance(model.attached, Places)
    assert str(model.attached).splitlines() == [
        "place                      channels  stage  plug-in",
        "layer4.0.drop_path.plugin  512       3      CBAM",
        "layer4.1.drop_path.plugin  512       3      CBAM",
    ]


def test_lists_plugins():
    assert "cbam" in visionattn.list_plugins() and visionattn.list_plugins() == sorted(visionattn.list_plugins())


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_follows_dtype_device_and_mode(device):
    model = timm.create_model("regnetx_002", device=device, dtype=torch.bfloat16).train()
    visionattn.attach(model, "cbam")
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {(device, torch.bfloat16)}
    assert all(module.training for module in model.modules())
    assert not any(m.training for m in visionattn.attach(network("regnetx_002"), "cbam").modules())


def test_only_attention_of_a_frozen_network_learns():
    model = visionattn.attach(network("resnet18").requires_grad_(False), "cbam")
    assert all(".plugin." in name for name, p in model.named_parameters() if p.requires_grad)
    model(image(2)).sum().backward()


def test_looking_for_places_leaves_the_network_alone():
    model = network("torchvision/resnet18").train()
    model.bn1.eval()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="stages"):
        visionattn.attach(model, "cbam", stages=9)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.layer1.training and not model.bn1.training
    model.layer1[0].bn2.eval()
    visionattn.attach(model, "cbam", stages=0)
    assert model.layer1[0].bn2.training and not model.layer1[0].bn2.module.training
    model = network("resnet18")
    with pytest.raises(ValueError, match="stages"):
        visionattn.attach(model, "cbam", stages=9)
    assert model.layer1[0].drop_path is None and not any(m._forward_hooks for m in model.modules())


@either_end
@pytest.mark.parametrize(
    "name", ["resnet18", "convnext_atto", "efficientnet_b0", "ghostnet_050", "cs3darknet_s", "vgg11_bn", "dla46_c"]
)
def test_networks_made_for_features(name, where):
    model = settled(timm.create_model(name, features_only=True, **NETWORKS[name][2]))
    before = output(model)
    visionattn.attach(model, "cbam", where)
    assert len(model.attached) >= len(model.feature_info.channels()) - 2
    assert all(map(torch.equal, output(model), before))
    for gamma in gammas(model):
        nn.init.ones_(gamma)
    assert not torch.equal(output(model)[-1], before[-1])


class OwnNetwork(nn.Module):
    """A network of known blocks that no library knows."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.parts = nn.ModuleList([BasicBlock(8, 8), BasicBlock(8, 8), nn.Conv2d(8, 16, 2, 2), BasicBlock(16, 16)])

    def forward(self, x):
        x = self.stem(x)
        for part in self.parts:
            x = part(x)
        return x.mean((2, 3))


@pytest.mark.parametrize(
    ("where", "names"),
    [
        ("block_end", ["parts.0.bn2.plugin", "parts.1.bn2.plugin", "parts.3.bn2.plugin"]),
        ("stage_end", ["parts.1.plugin", "parts.3.plugin"]),
    ],
)
def test_a_network_of_one_s_own(where, names):
    model = OwnNetwork().eval()
    before = output(model)
    assert [place.name for place in visionattn.attach(model, "cbam", where).attached] == names
    assert torch.equal(output(model), before)


def test_network_without_classifier():
    model = timm.create_model("mobilenetv3_small_050", num_classes=0).eval()
    before = output(model)
    assert torch.equal(output(visionattn.attach(model, "cbam")), before)


@pytest.mark.parametrize(
    ("name", "where", "on_first"),
    [("resnet18", "block_end", False), ("resnet18", "stage_end", False), ("ghostnet_050", "block_end", True)]
    + [
        (name, "stage_end", True)
        for name in ("resnet18", "resnetv2_18", "regnety_002", "convnext_atto", "ghostnet_050")
    ],
)
def test_gradient_checkpointing(name, where, on_first):
    plain, saving = (network(name).train() for _ in range(2))
    torch.manual_seed(0)
    visionattn.attach(plain, "cbam", where, start="paper")
    if on_first:
        saving.set_grad_checkpointing()
    visionattn.attach(saving, "cbam", where, start="paper")
    saving.set_grad_checkpointing()
    saving.load_state_dict(plain.state_dict())
    for model in (plain, saving):
        torch.manual_seed(0)
        model(image(2)).square().sum().backward()
    for ours, theirs in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_compiles_as_one_graph():
    model = visionattn.attach(network("torchvision/resnet18"), "cbam")
    for gamma in gammas(model):
        nn.init.constant_(gamma, 0.5)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(image()), model(image()))


def test_exports_with_dynamic_batch():
    model = visionattn.attach(network("torchvision/resnet18"), "cbam")
    for gamma in gammas(model):
        nn.init.constant_(gamma, 0.5)
    program = torch.export.export(model, (image(2),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    torch.testing.assert_close(program.module()(image(3)), model(image(3)))


def test_survives_folding_of_branches():
    model = visionattn.attach(network("repvgg_a0"), "cbam", start="paper")
    folded = reparameterize_model(model)
    assert sum(isinstance(module, CBAM) for module in folded.modules()) == len(model.attached)
    torch.testing.assert_close(output(folded), output(model))


@pytest.mark.parametrize("name", ["dla46_c", "torchvision/resnet18"])
def test_survives_copies_and_synchronised_normalisation(name):
    model = visionattn.attach(network(name), "cbam", start="paper")
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert other.attached == model.attached
        assert torch.equal(output(other), output(model))
    # A layer inside the normalisation would be lost here.
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    assert torch.equal(output(converted), output(model))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"plugin": "cbma"}, "unknown plug-in 'cbma'; there are: .*cbam"),
        ({"where": "stem"}, "where: 'stem' is no module of ResNet, nor is it 'block_end' or 'stage_end'; maps .* from"),
        ({"start": "zero"}, "start must be 'identity' or 'paper', got 'zero'"),
        ({"stages": 4}, r"stages must be some of 0, 1, 2, 3 \(-1 is the last\), got \[4\]"),
        ({"stages": ["layer1"]}, r"got \['layer1'\]"),
        ({"stages": (0, -5)}, r"got \[0, -5\]"),
        ({"stages": ()}, "stages must be some of"),
    ],
)
def test_bad_arguments(arguments, message):
    model = timm.create_model("resnet18", device="meta")
    with pytest.raises(ValueError, match=message):
        visionattn.attach(model, **{"plugin": "cbam", **arguments})
    assert not hasattr(model, "attached")


def test_a_plugin_is_not_an_instance():
    with pytest.raises(TypeError, match="a name, a class or a dict"):
        visionattn.attach(timm.create_model("resnet18", device="meta"), CBAM(64))


def test_a_place_is_taken_once():
    model = visionattn.attach(timm.create_model("resnet18", device="meta"), "cbam", stages=0)
    with pytest.raises(ValueError, match=r"attached already at layer1\.0\.drop_path, layer1\.1\.drop_path"):
        visionattn.attach(model, "cbam")
    assert len(model.attached) == 2


def test_a_plugin_that_does_not_fit_leaves_the_network_alone():
    model = timm.create_model("resnet18", device="meta")
    with pytest.raises(ValueError, match="reduction must be at least 1, got 0"):
        visionattn.attach(model, "cbam", reduction=0)
    assert not hasattr(model, "attached") and model.layer1[0].drop_path is None


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "mixer_s32_224", "mambaout_femto"]
)
@either_end
def test_networks_without_maps_are_refused(name, where):
    model = timm.create_model(name, device="meta")
    with pytest.raises(ValueError, match=rf"no place for attention at '{where}'; looked for blocks with a drop_path"):
        visionattn.attach(model, "cbam", where)


def test_a_network_of_layers_only_is_refused():
    with pytest.raises(ValueError, match="Sequential has no place"):
        visionattn.attach(nn.Sequential(nn.Linear(3, 3)), "cbam")


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("resnet18", {"block_args": {"attn_layer": CBAM}}),
        ("resnext26ts", {"attn_layer": CBAM}),
        ("res2net50_14w_8s", {"block_args": {"attn_layer": timm_layer("cbam", reduction=8)}}),
        ("efficientnet_b0", {"se_layer": timm_layer("cbam")}),
        ("mnasnet_small", {"se_layer": timm_layer({"type": CBAM, "reduction": 8})}),
    ],
)
def test_timm_s_own_doors(name, arguments):
    model = timm.create_model(name, device="meta", **arguments)
    assert any(isinstance(module, CBAM) for module in model.modules())
    assert model(torch.empty(1, 3, 64, 64, device="meta")).shape == (1, 1000)
