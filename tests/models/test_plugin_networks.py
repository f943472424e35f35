"""BAM's ResNets and the balanced network: golden values and timm's contracts."""

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay

import visionattn  # noqa: F401
from visionattn.plugins import BAM, BalancedMultiTaskAttention
from visionattn.testing.fixtures import load, relative_error

# The smallest of each family, on images small enough for a CPU: name -> size, stride of each feature.
SMALL = {
    "va_resnet18_bam": (64, (4, 8, 16, 32)),
    "va_balanced12_bmta": (16, (1, 2, 4, 8)),
}
small = pytest.mark.parametrize("name", SMALL)


def build(name, **kwargs):
    torch.manual_seed(0)
    return timm.create_model(name, **{"num_classes": 7, **kwargs}).eval()


def image(name, batch=2):
    size = SMALL[name][0]
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("fixture", "name", "points"),
    [
        ("bam_resnet50_eval", "va_resnet50_bam", ("layer1", "layer2", "layer3", "layer4")),
        ("bmta_balanced12_eval", "va_balanced12_bmta", ("layer1", "layer2", "layer3", "layer4")),
    ],
)
def test_golden(fixture, name, points, tmp_path):
    golden = load(fixture)
    # As the authors save them: nested, and wrapped for several devices.
    checkpoint = {"epoch": 1, "state_dict": {f"module.{key}": value for key, value in golden.state_dict.items()}}
    torch.save(checkpoint, tmp_path / "weights.pth")
    overlay = {"file": str(tmp_path / "weights.pth")}
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay).eval()
    assert sum(p.numel() for p in model.parameters()) == golden.meta["params"]
    means = {}
    for point in points:
        model.get_submodule(point).register_forward_hook(
            lambda module, inputs, out, point=point: means.update({point: out.mean((2, 3))})
        )
    with torch.no_grad():
        out = model(golden.input)
    assert relative_error(out, golden.arrays["out_0"]) < 1e-4
    for index, point in enumerate(points):
        assert relative_error(means[point], golden.arrays[f"feat_{index}"]) < 1e-4, point


@pytest.mark.parametrize("name", ["va_resnet18_bam", "va_resnet34_bam", "va_resnet50_bam", "va_resnet101_bam"])
def test_every_bam_follows_its_stage(name):
    model = timm.create_model(name, device="meta")
    places = [key for key, module in model.named_modules() if isinstance(module, BAM)]
    assert places == ["layer2.bam", "layer3.bam", "layer4.bam"]
    assert model.layer2.bam.spatial_gate.conv_in.in_channels == model.feature_info[1]["num_chs"]


def test_attention_of_every_balanced_block():
    model = timm.create_model("va_balanced12_bmta", device="meta")
    assert sum(isinstance(module, BalancedMultiTaskAttention) for module in model.modules()) == 11


def test_arguments_reach_the_attention():
    assert build("va_resnet18_bam", bam={"mode": "sum"}).layer3.bam.mode == "sum"
    model = build("va_balanced12_bmta", drop_block_rates=(0, 0, 0, 0.3))
    assert [model.layer1[0].drop_block.drop_prob, model.layer4[1].drop_block.drop_prob] == [0, 0.3]


def test_starts():
    model = build("va_resnet18_bam")
    fc = model.layer2.bam.channel_gate.fc0.weight.clone()
    model.init_weights()
    assert not torch.equal(fc, model.layer2.bam.channel_gate.fc0.weight)
    assert model.layer1[0].bn2.weight.all()
    model = build("va_balanced12_bmta")
    # PyTorch's own start is uniform, timm's is not.
    assert model.layer4[0].se.conv1.weight.abs().max().item() <= 512**-0.5


@small
def test_features(name):
    model = build(name, features_only=True)
    x = image(name)
    features = model(x)
    assert tuple(model.feature_info.reduction()) == SMALL[name][1]
    for feature, channels, stride in zip(
        features, model.feature_info.channels(), model.feature_info.reduction(), strict=True
    ):
        assert feature.shape == (2, channels, x.shape[2] // stride, x.shape[3] // stride)
    full = build(name)
    _, intermediates = full.forward_intermediates(x, indices=[1, 2, 3, 4])
    for feature, intermediate in zip(features, intermediates, strict=True):
        torch.testing.assert_close(feature, intermediate)
    torch.testing.assert_close(full.forward_head(full.forward_features(x)), full(x))
    early = full.forward_intermediates(x, indices=[2], intermediates_only=True, stop_early=True)
    torch.testing.assert_close(early[0], features[1])
    full.prune_intermediate_layers([2])
    torch.testing.assert_close(full.forward_intermediates(x, indices=[2], intermediates_only=True)[0], features[1])


@small
def test_head_and_input(name):
    model = build(name, num_classes=0)
    assert model(image(name)).shape == (2, model.num_features)
    model.reset_classifier(5)
    assert model(image(name)).shape == (2, 5)
    model = build(name, in_chans=1)
    assert model(image(name)[:, :1]).shape == (2, 7)
    assert build(name)(torch.randn(1, 3, 61, 83)).shape == (1, 7)
    cfg = model.default_cfg
    assert isinstance(model.get_submodule(cfg["first_conv"]), torch.nn.Conv2d)
    assert isinstance(model.get_submodule(cfg["classifier"]), torch.nn.Linear)
    assert model.no_weight_decay() == set()


@small
def test_every_parameter_gets_a_gradient_with_checkpointing(name):
    model = build(name, drop_path_rate=0.1)
    grads = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(image(name)).square().sum().backward()
        grads.append({key: p.grad for key, p in model.named_parameters()})
    for key, grad in grads[0].items():
        assert grad is not None, key
        torch.testing.assert_close(grads[1][key], grad)
    assert model.train()(image(name)).isfinite().all()


@small
def test_layers_are_in_order(name):
    model = build(name)
    for coarse in (False, True):
        matcher = model.group_matcher(coarse=coarse)
        groups = timm.models.group_parameters(model, matcher, reverse=True)
        assert max(groups.values()) == groups[f"{model.default_cfg['classifier']}.weight"]
        last = [key for key, group in groups.items() if group == max(groups.values())]
        assert not [key for key in last if "bam" in key or ".se." in key]
    if name == "va_resnet18_bam":
        fine = timm.models.group_parameters(model, model.group_matcher(), reverse=True)
        assert (
            fine["layer1.1.conv1.weight"] < fine["layer2.bam.channel_gate.fc0.weight"] <= fine["layer2.0.conv1.weight"]
        )
    assert param_groups_layer_decay(model, layer_decay=0.9)


@small
def test_meta_dtype_and_layout(name):
    model = build(name, device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.bfloat16)}
    model = build(name)
    x = image(name)
    expected = model(x)
    out = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    assert relative_error(out, expected) < 1e-4
    with torch.autocast("cpu", torch.bfloat16):
        assert relative_error(model(x), expected) < 0.1


@small
def test_exports_with_dynamic_batch_and_size(name):
    model = build(name)
    dim = torch.export.Dim.AUTO
    program = torch.export.export(model, (image(name),), dynamic_shapes=({0: dim, 2: dim, 3: dim},))
    x = torch.randn(3, 3, 96, 64)
    assert relative_error(program.module()(x), model(x)) < 1e-4


@pytest.mark.slow
@small
def test_compiles_as_one_graph(name):
    model = build(name)
    x = image(name)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert relative_error(compiled(x), model(x)) < 1e-4
    compiled(x).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.slow
@small
def test_onnx_agrees(name, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX parity needs the [test] extra")
    model = build(name)
    path = tmp_path / "model.onnx"
    dynamic = ({0: torch.export.Dim.DYNAMIC},)
    torch.onnx.export(model, (image(name),), path, dynamo=True, dynamic_shapes=dynamic, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    x = image(name, batch=3)
    (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert relative_error(torch.from_numpy(out), model(x)) < 1e-4


def test_wrong_weights_are_refused(tmp_path):
    golden = load("bmta_balanced12_eval")
    weights = {key.replace("stage4", "stage5"): value for key, value in golden.state_dict.items()}
    torch.save(weights, tmp_path / "weights.pth")
    overlay = {"file": str(tmp_path / "weights.pth")}
    with pytest.raises(ValueError, match="missing: layer4"):
        timm.create_model("va_balanced12_bmta", pretrained=True, pretrained_cfg_overlay=overlay)


@small
def test_own_weights_round_trip(name, tmp_path):
    model = build(name)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    overlay = {"file": str(tmp_path / "weights.pth"), "num_classes": 7}
    again = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay).eval()
    torch.testing.assert_close(again(image(name)), model(image(name)))
