"""Attaching at places that are named, in networks that no library of ours knows."""

import copy
import io
import re

import pytest
import timm
import torch
import torchvision
from foreign_networks import Bottleneck, Conv, HubLayer, HubResNet, TwoInputs, Yolo
from torch import nn

import visionattn
from visionattn.models.modifications import apply_modifications
from visionattn.plugins import CBAM
from visionattn.plugins._attached import ZeroInitGate


def settled(model):
    torch.manual_seed(0)
    for key, tensor in model.state_dict().items():
        if key.endswith(("running_mean", "bias")):
            tensor.uniform_(-0.2, 0.2)
        elif tensor.ndim == 1:
            tensor.uniform_(0.6, 1.2)
    return model.eval()


def tensors(output):
    if isinstance(output, torch.Tensor):
        return [output]
    if isinstance(output, dict):
        output = [*output.values()]
    elif not isinstance(output, list | tuple):
        output = [output.last_hidden_state, *output.hidden_states]
    return [x for part in output for x in tensors(part)]


@torch.no_grad()
def outputs(model, *args, **kwargs):
    args = args or (torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)),)
    return tensors(model(*args, **kwargs))


def same(first, second):
    return all(map(torch.equal, first, second))


def woken(model, value=0.5):
    for module in model.modules():
        if isinstance(module, ZeroInitGate):
            nn.init.constant_(module.gamma, value)
    return model


def names(model):
    return [place.name.removesuffix(".plugin") for place in model.attached]


def widths(model):
    return [place.channels for place in model.attached]


STAGES = [f"encoder.stages.{stage}" for stage in range(4)]
BLOCKS = [f"encoder.stages.{stage}.layers.{layer}.activation" for stage in range(4) for layer in range(2)]
LAYERS = [f"encoder.stages.{stage}.layers.{layer}.layer.2.normalization" for stage in range(4) for layer in range(2)]


@pytest.mark.parametrize(
    ("where", "found"),
    [
        # The end of a module is that of its last part, if that gives the same map.
        ("encoder.stages.*.layers.*", BLOCKS),
        ("encoder.stages.[13]", STAGES[1::2]),
        ("encoder.stages.[!0]", STAGES[1:]),
        ("**.layer.2.normalization", LAYERS),
        ("embedder.activation", ["embedder.activation"]),
        (["encoder.stages.0", "encoder.stages.2.layers.0"], [STAGES[0], BLOCKS[4]]),
        (re.compile(r".*\.layers\.0"), BLOCKS[::2]),
        (lambda name, module: isinstance(module, HubLayer) and "stages.2" in name, BLOCKS[4:6]),
        ("block_end", LAYERS),
        ("stage_end", STAGES),
    ],
)  # fmt: skip
def test_a_network_as_hugging_face_s(where, found):
    model = settled(HubResNet())
    before, keys = outputs(model), set(model.state_dict())
    assert visionattn.attach(model, "cbam", where) is model
    assert names(model) == found
    assert same(outputs(model), before)
    picture = torch.ones(1, 3, 64, 64)
    assert same(tensors(model(pixel_values=picture)), outputs(model, picture))
    assert {key for key in model.state_dict() if ".plugin." not in key} == keys
    assert not same(outputs(woken(model)), before)


def test_channels_and_stages_are_those_of_the_network():
    model = visionattn.attach(HubResNet(), "cbam", "encoder.stages.*.layers.0")
    assert [(place.channels, place.stage) for place in model.attached] == [(8, 0), (16, 1), (24, 2), (32, 3)]
    model = visionattn.attach(HubResNet(), "cbam", "encoder.stages.*.layers.*", stages=-1)
    assert widths(model) == [32, 32]
    model = visionattn.attach(HubResNet(), "cbam", ["embedder", "encoder.stages.3"])
    assert [place.stage for place in model.attached] == [0, 3]
    with pytest.raises(ValueError, match=r"stages must be some of 2, 3 \(-1 is the last\), got \[0\]"):
        visionattn.attach(HubResNet(), "cbam", "encoder.stages.[23]", stages=0)


@pytest.mark.parametrize(
    ("where", "found", "channels"),
    [
        ("model.4", ["model.4.cv2"], [32]),
        (["model.0", "model.[24]"], ["model.0", "model.2.cv2", "model.4.cv2"], [8, 16, 32]),
        (lambda name, module: type(module).__name__ == "C2f", [f"model.{n}.cv2" for n in (2, 4, 7)], [16, 32, 16]),
        ("model.?.cv2.bn", [f"model.{n}.cv2.bn" for n in (2, 4, 7)], [16, 32, 16]),
        ("block_end", [f"model.{n}" for n in ("2.m.0.cv2", "2.m.1.cv2", "4.m.0.cv2", "7.m.0.cv2")], [8, 8, 16, 8]),
    ],
)  # fmt: skip
def test_a_network_as_ultralytics(where, found, channels):
    """Its loop reads the wiring from its layers, which the joints pass on, and its blocks share one activation."""
    model = settled(Yolo())
    before, keys = outputs(model), set(model.state_dict())
    visionattn.attach(model, "cbam", where)
    assert names(model) == found and widths(model) == channels
    assert same(outputs(model), before)
    assert {key for key in model.state_dict() if ".plugin." not in key} == keys
    assert not same(outputs(woken(model)), before)
    plain = settled(Yolo())
    loaded = model.load_state_dict(plain.state_dict(), strict=False)
    assert not loaded.unexpected_keys and all(".plugin." in key for key in loaded.missing_keys)


def test_the_dry_run_leaves_what_a_network_keeps_alone():
    model = settled(Yolo()).train()
    visionattn.attach(model, "cbam", "model.2")
    assert model.model[8].shape is None and model.model[8].anchors.device.type == "cpu"
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    "example",
    [
        [torch.randn(1, 4, 6, 10), torch.zeros(1, 1)],
        [(1, 4, 6, 10), (1, 1)],
        {"map": torch.randn(1, 4, 6, 10), "time": torch.zeros(1, 1)},
        {"time": [1, 1], "map": [1, 4, 6, 10]},
    ],
)
def test_a_network_of_other_inputs(example):
    """It looks at its data, so it runs where it is; its block takes a second argument."""
    model = settled(TwoInputs())
    inputs = (torch.randn(2, 4, 6, 10), torch.ones(2, 1))
    before = outputs(model, *inputs)
    with pytest.raises(ValueError, match=r"TwoInputs does not run on an input of \(1, 4, 224, 224\): .*example_input="):
        visionattn.attach(model, "cbam", "block")
    visionattn.attach(model, "cbam", "block", example_input=example)
    assert [(place.name, place.channels) for place in model.attached] == [("block.plugin", 8)]
    assert same(outputs(model, *inputs), before)
    assert not same(outputs(woken(model), *inputs), before)
    twin = apply_modifications(settled(TwoInputs()), model.modifications)
    twin.load_state_dict(model.state_dict())
    assert same(outputs(twin, *inputs), outputs(model, *inputs))
    with pytest.raises(ValueError, match=r"does not run on an input of \(1, 4, 6, 6\): .* \(example_input\)"):
        visionattn.attach(TwoInputs(), "cbam", "block", example_input=(1, 4, 6, 6))


@pytest.mark.parametrize(
    ("where", "noted"),
    [
        ("layer[34].1", ["layer3.1", "layer4.1"]),
        (re.compile(r"layer[34]\.1"), ["layer3.1", "layer4.1"]),
        (lambda name, module: name in ("layer3.1", "layer4.1"), ["layer3.1", "layer4.1"]),
        ("layer1", ["layer1"]),
    ],
)
@pytest.mark.parametrize("create", [lambda: torchvision.models.resnet18(), lambda: timm.create_model("resnet18")])
def test_what_is_noted_rebuilds_the_network(create, where, noted):
    model = woken(visionattn.attach(settled(create()), "cbam", where, reduction=8))
    (modification,) = model.modifications
    assert modification["arguments"] == {
        "plugin": "cbam", "where": noted, "stages": None, "start": "identity", "reduction": 8
    }  # fmt: skip
    twin = apply_modifications(create(), model.modifications).eval()
    assert twin.attached == model.attached
    twin.load_state_dict(model.state_dict())
    assert same(outputs(twin), outputs(model))


def test_places_in_places_and_several_calls():
    """Names are those of the state dict, whatever was attached around a module before."""
    model = settled(torchvision.models.resnet18())
    before = outputs(model)
    visionattn.attach(model, "cbam", ["layer1.1", "layer1.1.conv1", "layer2.0.bn1"])
    visionattn.attach(model, "simam", "layer1.1.bn1")
    visionattn.attach(model, CBAM, stages=1)
    assert same(outputs(model), before)
    found = [type(model.get_submodule(place.name)).__name__ for place in model.attached]
    assert found == ["ZeroInitGate"] * 6
    assert "layer1.1.module.conv1.plugin" in [place.name for place in model.attached]
    twin = apply_modifications(torchvision.models.resnet18(), model.modifications).eval()
    twin.load_state_dict(woken(model).state_dict())
    assert same(outputs(twin), outputs(model)) and twin.attached == model.attached
    # A joint round a place of before moves that.
    model = visionattn.attach(settled(torchvision.models.resnet18()), "cbam", "layer3.0.conv1")
    visionattn.attach(model, "cbam", "layer3.0")
    assert names(model) == ["layer3.0.module.conv1", "layer3.0"]
    assert all(isinstance(model.get_submodule(place.name), ZeroInitGate) for place in model.attached)


@pytest.mark.parametrize("build", [Yolo, HubResNet])
def test_survives_copies(build):
    model = woken(visionattn.attach(settled(build()), "cbam", lambda _, m: isinstance(m, Conv | HubLayer)))
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert other.attached == model.attached and same(outputs(other), outputs(model))


@pytest.mark.parametrize(("build", "where"), [(Yolo, "model.[024]"), (HubResNet, "encoder.stages.*")])
def test_compiles_and_exports(build, where):
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = woken(visionattn.attach(settled(build()), "cbam", where))

        def forward(self, x):
            return self.network(x)[0]

    model, x = Plain().eval(), torch.randn(2, 3, 64, 64)
    model(x)  # what the detector keeps is of this size then
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(x), model(x))
    program = torch.export.export(model, (x,))
    torch.testing.assert_close(program.module()(x), model(x))


def test_gradients_reach_named_places():
    model = visionattn.attach(settled(Yolo()).train(), "cbam", "model.[0247]")
    sum(x.square().sum() for x in tensors(model(torch.randn(2, 3, 64, 64)))).backward()
    assert all(m.gamma.grad.count_nonzero() for m in model.modules() if isinstance(m, ZeroInitGate))


@pytest.mark.parametrize(
    ("build", "where", "message"),
    [
        (HubResNet, "encoder", r"where: encoder gives a ModelOutput, not one map \(B, C, H, W\); maps .* come from "
                               r"embedder \(8 channels\), .*encoder.stages.\* \(8 to 32 channels\)"),
        (Yolo, "model.8", r"where: model.8 gives a tuple, not one map"),
        (Yolo, "model.2.m", r"where: model.2.m is not called when Yolo runs"),
        (Yolo, "model.0.act", r"where: model.0.act runs \d+ times, with maps of 8, 16, 32 channels: name the"),
        (Yolo, "model.9", r"where: 'model.9' is no module of Yolo \(did you mean 'model.\d'\?\), nor"),
        (Yolo, "modell.*", r"'modell.\*' fits no module of Yolo, nor is it .*maps .* model.\* \(8 to 32 channels\)"),
        (Yolo, ["model.0", re.compile("x")], r"where: 'x' fits no module of Yolo"),
        (Yolo, lambda name, module: isinstance(module, nn.ModuleList), "where=<lambda>: no module that fits gives one"),
        (Yolo, "stage_ends", "'stage_ends' is no module of Yolo, nor is it 'block_end' or 'stage_end'"),
        (Yolo, [], r"where must be 'block_end', 'stage_end', names of modules, patterns .* got \[\]"),
        (Yolo, 3, "where must be 'block_end', 'stage_end', names of modules, patterns .* got 3"),
        (nn.Flatten, "x", "Flatten has no place for attention: it has no Conv2d; example_input="),
        (lambda: nn.Sequential(Conv(3, 8)), "block_end", r"Sequential has no place .*residual blocks.* "
                                                r"where= also takes names .*maps .* from \* \(8 channels\)"),
    ],
)  # fmt: skip
def test_what_is_no_place_says_so_and_lists_those_that_are(build, where, message):
    model = build()
    with pytest.raises(ValueError, match=message) as error:
        visionattn.attach(model, "cbam", where)
    assert "\n" not in str(error.value) and not hasattr(model, "attached")


def test_a_bottleneck_is_found_by_what_it_computes():
    """Its name says nothing: the plug-in stands before the addition, or at the end of one that adds nothing."""
    model = visionattn.attach(Yolo(), "cbam", start="paper")
    with_shortcut = model.get_submodule("model.2.m.0")
    assert isinstance(with_shortcut, Bottleneck) and isinstance(with_shortcut.cv2.plugin, CBAM)
    assert isinstance(model.get_submodule("model.7.m.0").cv2.plugin, CBAM)


def test_taken_places_are_refused():
    model = visionattn.attach(Yolo(), "cbam", "model.4")
    with pytest.raises(ValueError, match=r"attention is attached already at model\.4\.cv2; choose other places"):
        visionattn.attach(model, "cbam", "model.*")
    assert len(model.attached) == 1


def test_folding_a_block_does_not_lose_its_attention():
    """A joint shows a module's data and not its methods."""
    model = visionattn.attach(Yolo(), "cbam", "model.0")
    joint = model.model[0]
    assert (joint.i, joint.f) == (0, -1) and isinstance(joint.conv, nn.Conv2d)
    joint.module.fuse = lambda: None
    assert hasattr(joint.module, "fuse") and not hasattr(joint, "fuse") and not hasattr(joint, "nonsense")
