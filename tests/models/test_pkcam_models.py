"""PKCAM's ResNets against the official code's recorded results, and what every registered network promises."""

import logging

import pytest
import timm
import torch
from torch import nn
from torch.distributed import destroy_process_group, init_process_group

import visionattn  # noqa: F401
from visionattn.models.families.va_pkcam_resnet import PKCAMBasicBlock, PKCAMBottleneck, checkpoint_filter_fn
from visionattn.plugins import PKCAM
from visionattn.testing.fixtures import check_module, load, normal, relative_error

NAMES = ("va_resnet18_pkcam", "va_resnet34_pkcam", "va_resnet50_pkcam", "va_resnet101_pkcam")
VARIANTS = ("stage", "stage_last", "stage_all", "block", "block_stage", "block_stage_last", "block_stage_all")
# Fixture -> our arguments and how many of the author's weights are never used.
LEARNED = {"earlier": "stage_all", "upsample": "learned"}
MODELS = {
    "resnet18_block": ({"earlier": "block"}, 12),
    "resnet18_ms2d": ({}, 12),
    "resnet18_stageall": ({"earlier": "stage_all"}, 12),
    "resnet18_stagelast": ({"earlier": "stage_last"}, 12),
    "resnet18_upsample2d": (LEARNED, 17),
    "resnet34_upsample2d": (LEARNED, 18),
    "resnet50_block": ({"earlier": "block"}, 12),
    "resnet50_blockstage": ({"earlier": "block_stage"}, 20),
    "resnet50_default": ({}, 12),
    "resnet50_stageall": ({"earlier": "stage_all"}, 12),
}
# Fixture -> position in its stage, block and attention.
BLOCKS = {
    "default_1x48x17x9_eval": (2, PKCAMBasicBlock, {"stage_widths": (48, 48)}),
    "default_1x48x17x9_train": (2, PKCAMBasicBlock, {"stage_widths": (48, 48)}),
    "default_2x64x14x14_eval": (1, PKCAMBasicBlock, {"stage_widths": (64,) * 3}),
    "first_2x64x14x14_train": (0, PKCAMBasicBlock, {}),
    "bottleneck_2x128x7x10_train": (1, PKCAMBottleneck, {"stage_widths": (128, 128), "block_count": 1}),
}
X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def build(name="va_resnet18_pkcam", **kwargs):
    torch.manual_seed(0)
    return timm.create_model(name, **{"num_classes": 5, **kwargs}).eval()


class Given(nn.Module):
    """A block with its earlier descriptors fixed, as a function of one map."""

    def __init__(self, block, stage, earlier):
        super().__init__()
        self.block, self.stage, self.earlier = block, stage, earlier

    def forward(self, x):
        return self.block(x, self.stage, self.earlier)[0]


@pytest.mark.parametrize("name", BLOCKS)
def test_golden_block(name):
    golden = load(f"pkcam_block_{name}")
    index, block_type, attention = BLOCKS[name]
    c = golden.meta["constructor"]
    width = c["out_channels"] * block_type.expansion
    downsample = None
    if c["in_channels"] != width:
        conv = nn.Conv2d(c["in_channels"], width, 1, c["stride"], bias=False)
        downsample = nn.Sequential(conv, nn.BatchNorm2d(width))
    block = block_type(c["in_channels"], c["out_channels"], c["stride"], downsample)
    block.se = PKCAM(width, **attention)
    holder = nn.Module()
    holder.layer1 = nn.Sequential(*[nn.Identity()] * index, block)
    weights = {f"stage1.{index}.{key}": value for key, value in golden.state_dict.items()}
    holder.load_state_dict(checkpoint_filter_fn(weights, holder))

    earlier, stage = ([normal(*e) for e in given] for given in golden.meta["aux_inputs"])
    module = Given(block, stage if "stage_widths" in attention else (), earlier if "block_count" in attention else ())
    check_module(module, golden, 1e-5)
    names = {"residual.1.": "bn1.", "residual.4.": "bn2.", "residual.7.": "bn3.", "shortcut.1.": "downsample.1."}
    for key, expected in golden.meta.get("buffers_after", {}).items():
        for official, ours in names.items():
            key = key.replace(official, ours)
        torch.testing.assert_close(block.get_buffer(key), torch.tensor(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_golden_model(name, tmp_path, caplog):
    golden = load(f"pkcam_{name}_eval")
    arguments, unused = MODELS[name]
    path = tmp_path / "official.pth"
    torch.save({"state_dict": {f"module.{key}": value for key, value in golden.state_dict.items()}}, path)
    with caplog.at_level(logging.INFO):
        model = timm.create_model(
            f"va_{name.split('_')[0]}_pkcam", pretrained=True, pretrained_cfg_overlay={"file": str(path)}, **arguments
        ).eval()
    assert f"left out {unused} weights that the official code never uses" in caplog.text
    with torch.no_grad():
        features = model.forward_intermediates(golden.input, indices=4, intermediates_only=True)
        logits = model(golden.input)
    assert relative_error(logits, golden.arrays["out_0"]) < 1e-4
    for index, feature in enumerate(features):
        assert relative_error(feature.mean((2, 3)), golden.arrays[f"feat_{index}"]) < 1e-4


def test_foreign_weights_are_refused(tmp_path):
    weights = load("pkcam_resnet18_stageall_eval").state_dict
    path = tmp_path / "official.pth"
    for change, message in (
        ({"earlier": "block"}, "not in the model: layer1.1.se.stage_gate"),
        ({"earlier": "stage"}, r"wrong shape: layer3.1.se.stage_gate.mix.weight is \(1, 1, 3\)"),
    ):
        torch.save(weights, path)
        with pytest.raises(ValueError, match=message):
            build(pretrained=True, pretrained_cfg_overlay={"file": str(path)}, **change)
    torch.save({**weights, "stage2.1.mystery": torch.ones(1)}, path)
    with pytest.raises(ValueError, match=r"layer2\.1\.mystery"):
        build(earlier="stage_all", pretrained=True, pretrained_cfg_overlay={"file": str(path)})


def test_own_weights_load(tmp_path):
    model = build(num_classes=1000)
    torch.save(model.state_dict(), tmp_path / "own.pth")
    overlay = {"file": str(tmp_path / "own.pth")}
    loaded = build(num_classes=1000, pretrained=True, pretrained_cfg_overlay=overlay)
    assert torch.equal(model(X), loaded(X))
    assert build(in_chans=1, pretrained=True, pretrained_cfg_overlay=overlay)(X[:, :1]).shape == (2, 5)


@pytest.mark.parametrize("inner", ["eca", "se"])
@pytest.mark.parametrize("earlier", VARIANTS)
def test_every_parameter_gets_a_gradient(earlier, inner):
    for upsample in ("tile", "learned"):
        model = build(earlier=earlier, inner=inner, upsample=upsample).train()
        model(X).square().sum().backward()
        assert not [key for key, parameter in model.named_parameters() if parameter.grad is None]


@pytest.mark.parametrize("earlier", VARIANTS)
def test_first_blocks_have_a_local_gate_only(earlier):
    model = build("va_resnet50_pkcam", earlier=earlier)
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        assert {key.split(".")[0] for key, _ in stage[0].se.named_parameters()} == {"local_gate"}
        assert all("mix.weight" in dict(block.se.named_parameters()) for block in stage[1:])


def test_distributed_training_needs_no_search_for_unused_parameters(tmp_path):
    init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(build(earlier="block_stage").train())
        for _ in range(2):  # An unused parameter would stop the second step.
            model(X).sum().backward()
    finally:
        destroy_process_group()


def test_starts_as_the_official_code_does():
    model = build()
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 1000:
            bound = module.weight[0].numel() ** -0.5
            assert 0.9 * bound < module.weight.abs().max() <= bound
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all() and (module.bias == 0).all()
    zeroed = build("va_resnet50_pkcam", zero_init_last=True)
    assert all((block.bn3.weight == 0).all() for block in zeroed.layer2)


@pytest.mark.parametrize("name", NAMES)
def test_registered_with_a_cfg(name):
    cfg = timm.get_pretrained_cfg(name)
    model = build(name, device="meta")
    assert cfg.first_conv == "conv1" and cfg.classifier == model.get_classifier(name_only=True) == "fc"
    assert model.no_weight_decay() == set()
    for coarse in (False, True):
        groups = timm.models.group_parameters(model, model.group_matcher(coarse=coarse))
        assert sum(map(len, groups.values())) == len(list(model.parameters()))


@pytest.mark.parametrize("name", ["va_resnet18_pkcam", "va_resnet50_pkcam"])
@pytest.mark.parametrize("earlier", ["stage", "block_stage_all"])
def test_features_at_every_stride(name, earlier):
    model = build(name, earlier=earlier)
    features = build(name, earlier=earlier, features_only=True)
    assert features.feature_info.reduction() == [4, 8, 16, 32]
    x = torch.randn(1, 3, 75, 61)
    maps = features(x)
    assert [m.shape[1] for m in maps] == features.feature_info.channels()
    for reduction, m in zip(features.feature_info.reduction(), maps, strict=True):
        assert m.shape[2:] == tuple(-(-side // reduction) for side in x.shape[2:])
    for m, expected in zip(maps, model.forward_intermediates(x, indices=4)[1], strict=True):
        assert relative_error(m, expected) < 1e-6
    early = build(name, earlier=earlier, features_only=True, out_indices=(0, 2))
    assert early.feature_info.reduction() == [2, 8] and "model.layer3.0.conv1.weight" not in early.state_dict()
    assert relative_error(early(x)[1], maps[1]) < 1e-6


def test_intermediates():
    model = build()
    last, maps = model.forward_intermediates(X)
    assert len(maps) == 5 and torch.equal(last, maps[-1]) and torch.equal(last, model.forward_features(X))
    stopped, (first, second) = model.forward_intermediates(X, indices=[0, -3], stop_early=True)
    assert torch.equal(first, maps[0]) and torch.equal(second, maps[2]) and torch.equal(stopped, second)
    assert torch.equal(model(X), model.forward_head(last))
    assert model.forward_head(last, pre_logits=True).shape == (2, 512)
    for arguments in ({"indices": [5]}, {"indices": 6}, {"indices": 0}, {"indices": []}):
        with pytest.raises(ValueError, match="must choose from 5 maps"):
            model.forward_intermediates(X, **arguments)
    with pytest.raises(ValueError, match="NLC"):
        model.forward_intermediates(X, output_fmt="NLC")


def test_stages_can_be_hooked():
    model, seen = build(), []
    model.layer2.register_forward_hook(lambda module, args, out: seen.append(out[0]))
    model.layer2[1].se.register_forward_hook(lambda module, args, out: seen.append(out[1]))
    model(X)
    assert seen[0].shape == (2, 128) and seen[1].shape == (2, 128, 8, 8)


def test_classifier_can_be_changed():
    model = build(num_classes=0)
    assert model(X).shape == (2, 512)
    model.reset_classifier(7)
    assert model(X).shape == (2, 7) and isinstance(model.get_classifier(), nn.Linear)
    model.reset_classifier(0, "")
    assert model(X).shape == (2, 512, 2, 2)
    assert build(in_chans=6)(torch.randn(1, 6, 64, 64)).shape == (1, 5)


@pytest.mark.parametrize("size", [(1, 1), (33, 64), (61, 83)], ids=str)
def test_any_size_in_both_layouts(size):
    model = build("va_resnet50_pkcam")
    x = torch.randn(2, 3, *size)
    expected = model(x)
    out = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    assert out.isfinite().all() and relative_error(out, expected) < 1e-5


@pytest.mark.parametrize("earlier", ["stage", "block_stage"])
def test_checkpointing_changes_nothing(earlier):
    results = []
    for enable in (False, True):
        model = build("va_resnet50_pkcam", earlier=earlier).double().train()
        model.set_grad_checkpointing(enable)
        out = model(X.double())
        out.square().sum().backward()
        results.append((out, [parameter.grad for parameter in model.parameters()]))
    assert torch.equal(results[0][0], results[1][0])
    for a, b in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(a, b)


def test_drop_path():
    model = build(drop_path_rate=0.5)
    assert model.layer4[1].drop_path.drop_prob == 0.5
    assert torch.equal(model(X), build()(X))
    assert not torch.equal(model.train()(X), build().train()(X))


def test_built_on_meta_with_a_dtype():
    model = build(device="meta", dtype=torch.bfloat16, inner="se")
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.bfloat16)}
    assert model(X.to("meta", torch.bfloat16)).shape == (2, 5)


def test_bfloat16():
    model = build()
    expected = model(X)
    with torch.autocast("cpu", torch.bfloat16):
        assert relative_error(model(X), expected) < 0.05
    assert relative_error(model.bfloat16()(X.bfloat16()), expected) < 0.05


@pytest.mark.parametrize("earlier", ["stage", pytest.param("block_stage_all", marks=pytest.mark.slow)])
def test_compiles_as_one_graph(earlier):
    model = build(earlier=earlier)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert relative_error(compiled(X), model(X)) < 1e-5


@pytest.mark.slow
def test_compiles_with_inductor():
    model = build()
    assert relative_error(torch.compile(model, fullgraph=True)(X), model(X)) < 1e-4


@pytest.mark.parametrize("arguments", [{}, LEARNED], ids=str)
def test_exports_with_dynamic_batch(arguments):
    model = build(**arguments)
    program = torch.export.export(model, (X,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    x = torch.randn(3, 3, 64, 64)
    assert relative_error(program.module()(x), model(x)) < 1e-5


@pytest.mark.parametrize(
    "arguments", [{"earlier": "block_stage"}, pytest.param(LEARNED, marks=pytest.mark.slow)], ids=str
)
def test_onnx_agrees(arguments, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX parity needs the [test] extra")
    model = build(**arguments)
    path = tmp_path / "model.onnx"
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    torch.onnx.export(model, (X,), path, dynamo=True, dynamic_shapes=shapes, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    x = torch.randn(3, 3, 64, 64)
    (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert relative_error(torch.from_numpy(out), model(x)) < 1e-4


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"earlier": "stages"}, ValueError, "earlier must be one of stage, .*, got 'stages'"),
        ({"inner": "cbam"}, ValueError, "inner must be one of eca, se, got 'cbam'"),
        ({"upsample": "linear"}, ValueError, "upsample must be one of tile, learned, got 'linear'"),
        ({"channels": (64, 96, 128, 256)}, ValueError, "must divide channels=96"),
        ({"nonsense": 1}, TypeError, "nonsense"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        build(**arguments)
