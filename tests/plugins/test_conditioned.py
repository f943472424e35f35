"""Networks with gates that take a second input: exact at the start, complete, called with both inputs."""

import copy
import pickle

import pytest
import timm
import torch
import torchvision
from torch import nn

import visionattn
from visionattn.plugins import SentenceAttention
from visionattn.plugins._attached import ZeroInitGate

GATES = {
    "sentence": ({"plugin": "sentence", "cond_dim": 6}, (6,)),
    "acat": ({"plugin": "acat"}, (1, 32, 32)),
    "csa": ({"plugin": {"type": "csa", "cond_channels": 5}}, (5, 8, 8)),
}
NETWORKS = ("resnet18", "regnety_002", "convnext_atto", "densenet121", "efficientnet_b0", "mobilenetv3_small_050")
NETWORKS += ("vgg11_bn", "hgnetv2_b0", "dla46_c", "rexnet_100")
NETWORKS += ("torchvision/resnet18", "torchvision/mobilenet_v2", "torchvision/densenet121")
every_gate = pytest.mark.parametrize("gate", GATES)


def built(name, **kwargs):
    torch.manual_seed(0)
    small = {"mlp_ratio": 0.01} if name.startswith("vgg") else {}
    library, _, model = name.rpartition("/")
    create = torchvision.models.get_model if library else timm.create_model
    model = create(model, num_classes=10, **small, **kwargs)
    for key, tensor in model.state_dict().items():
        if tensor.ndim == 1 and tensor.is_floating_point():
            tensor.uniform_(*((-0.2, 0.2) if key.endswith(("running_mean", "bias")) else (0.6, 1.2)))
    return model.eval()


def image(batch=2):
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def condition(gate, batch=2):
    return torch.rand(batch, *GATES[gate][1], generator=torch.Generator().manual_seed(2))


def conditioned(gate, name="resnet18", **kwargs):
    return visionattn.attach(built(name), condition=True, **GATES[gate][0], **kwargs)


@pytest.mark.parametrize("where", ["block_end", "stage_end"])
@pytest.mark.parametrize("name", NETWORKS)
@every_gate
def test_no_output_changes_at_the_start(gate, name, where):
    before = built(name)(image())
    model = conditioned(gate, name, where=where)
    assert torch.equal(model(image(), condition(gate)), before)
    for module in model.modules():
        if isinstance(module, ZeroInitGate):
            nn.init.ones_(module.gamma)
    outputs = [model(image(), factor * condition(gate)) for factor in (1, 1, 4)]
    assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2])


@every_gate
def test_is_the_network_otherwise(gate):
    plain = built("resnet18")
    model = conditioned(gate, start="paper")
    assert model.num_classes == 10 and model.num_features == 512 and model.feature_info == plain.feature_info
    names = [place.name for place in model.attached]
    assert len(names) == 8 and all(f"{names[0]}." in key for key in list(model.state_dict()) if names[0] in key)
    assert plain.state_dict().keys() <= model.state_dict().keys()
    report = model.load_state_dict(plain.state_dict(), strict=False)
    assert not report.unexpected_keys and all(".plugin." in key for key in report.missing_keys)
    assert model.modifications[0]["arguments"]["condition"] is True
    x, given = image(), condition(gate)
    last = model.forward_features(x, given)
    torch.testing.assert_close(model.forward_head(last), model(x, given))
    maps = model.forward_intermediates(x, given, intermediates_only=True)
    assert torch.equal(maps[-1], last)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x, given), model(x, given))
    saved = copy.deepcopy(model.state_dict())
    again = conditioned(gate, start="paper")
    again.load_state_dict(saved)
    assert torch.equal(again(x, given), model(x, given))


@every_gate
def test_keeps_no_condition(gate):
    model, x = conditioned(gate, start="paper"), image()
    model(x, condition(gate))
    with pytest.raises(ValueError, match=r"^condition is missing: call model\(image, condition\)"):
        model(x)
    with pytest.raises(ValueError, match="must be"):
        model(x, condition(gate)[:, :0])
    with pytest.raises(ValueError, match=r"must be \(B, .* got \(3"):
        model(x, condition(gate, 3))
    with pytest.raises(ValueError, match="condition must be finite; that of picture 1 of the batch is not"):
        model(x, condition(gate).index_fill(0, torch.tensor([1]), torch.inf))
    with pytest.raises(ValueError, match="condition must be a tensor of floating-point numbers, got list"):
        model(x, [0.0])
    with pytest.raises(ValueError, match="condition is missing"):
        model(x)


@every_gate
def test_compiles_and_exports(gate):
    model, x, given = conditioned(gate, start="paper"), image(), condition(gate)
    expected = model(x, given)
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, given), expected)
    batch = {0: torch.export.Dim.DYNAMIC}
    program = torch.export.export(model, (x, given), dynamic_shapes=(batch, batch))
    torch.testing.assert_close(program.module()(image(3), condition(gate, 3)), model(image(3), condition(gate, 3)))


def test_gradients_reach_gates_and_condition():
    model = conditioned("sentence", start="paper").train()
    given = condition("sentence").requires_grad_()
    model(image(), given).square().sum().backward()
    assert given.grad.count_nonzero()
    assert all(p.grad is not None for name, p in model.named_parameters() if ".plugin." in name)


def test_checkpointing_is_refused_in_words():
    model = conditioned("sentence", start="paper").train()
    model.set_grad_checkpointing()
    out = model(image(), condition("sentence"))
    with pytest.raises(
        ValueError, match=r"condition is missing: SentenceAttention needs the sentence .* checkpointing"
    ):
        out.sum().backward()


def test_more_attention_beside_it():
    before = built("resnet18")(image())
    model = conditioned("acat", where="stage_end", stages=(0, 1, 2))
    assert visionattn.attach(model, "cbam") is model
    assert visionattn.attach(model, "acat", "stage_end", 3, condition=True) is model
    assert [place.plugin for place in model.attached] == ["SaliencyModulation"] * 3 + ["CBAM"] * 8 + [
        "SaliencyModulation"
    ]
    assert torch.equal(model(image(), condition("acat")), before)


def test_a_list_of_maps():
    model = visionattn.attach(built("resnet18", features_only=True), "acat", "stage_end", condition=True)
    assert [m.shape[1] for m in model(image(), condition("acat"))] == model.feature_info.channels()


def test_bad_arguments():
    message = "condition=True needs a plug-in that takes one: acat, csa, sentence; got .cbam."
    with pytest.raises(ValueError, match=message):
        visionattn.attach(built("resnet18"), "cbam", condition=True)
    with pytest.raises(ValueError, match=r"'sentence' needs more than a map \(sentence\)"):
        visionattn.attach(built("resnet18"), "sentence")
    with pytest.raises(ValueError, match="unknown plug-in 'sentences'"):
        visionattn.attach(built("resnet18"), "sentences", condition=True)
    with pytest.raises(TypeError, match="a plug-in is a name, a class or a dict"):
        visionattn.attach(built("resnet18"), 3, condition=True)
    model = visionattn.attach(built("resnet18"), SentenceAttention, condition=True, cond_dim=6)
    assert model.modifications[0]["arguments"]["plugin"] == "sentence"
