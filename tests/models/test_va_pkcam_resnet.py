"""PKCAM's ResNets against the official code's recorded results, and what travels between their blocks."""

import logging

import pytest
import timm
import torch
from torch import nn
from torch.distributed import destroy_process_group, init_process_group

import visionattn  # noqa: F401
from visionattn.models.families.va_pkcam_resnet import HistoryPKCAM, checkpoint_filter_fn
from visionattn.models.hosts.cross_layer import CrossLayerBasicBlock, CrossLayerBottleneck
from visionattn.testing.fixtures import check_module, load, normal, relative_error

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
# What they see is covered by the others.
SLOW = ("resnet34_upsample2d", "resnet50_block", "resnet50_default", "resnet50_stageall")
# Fixture -> position in its stage, block, and what it sees.
BLOCKS = {
    "default_1x48x17x9_eval": (2, CrossLayerBasicBlock, "stage"),
    "default_1x48x17x9_train": (2, CrossLayerBasicBlock, "stage"),
    "default_2x64x14x14_eval": (1, CrossLayerBasicBlock, "stage"),
    "first_2x64x14x14_train": (0, CrossLayerBasicBlock, "stage"),
    "bottleneck_2x128x7x10_train": (1, CrossLayerBottleneck, "block_stage"),
}
X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def build(name="va_resnet18_pkcam", **kwargs):
    torch.manual_seed(0)
    return timm.create_model(name, **{"num_classes": 5, **kwargs}).eval()


class Given(nn.Module):
    """A block with its history fixed, as a function of one map."""

    def __init__(self, block, history):
        super().__init__()
        self.block, self.history = block, history

    def forward(self, x):
        return self.block(x, self.history)[0]


@pytest.mark.parametrize("name", BLOCKS)
def test_golden_block(name):
    golden = load(f"pkcam_block_{name}")
    index, block_type, earlier = BLOCKS[name]
    c = golden.meta["constructor"]
    width = c["out_channels"] * block_type.expansion
    downsample = None
    if c["in_channels"] != width:
        conv = nn.Conv2d(c["in_channels"], width, 1, c["stride"], bias=False)
        downsample = nn.Sequential(conv, nn.BatchNorm2d(width))
    block = block_type(c["in_channels"], c["out_channels"], c["stride"], downsample)
    own, stages = ([normal(*e) for e in given] for given in golden.meta["aux_inputs"])
    # Of blocks before that the fixture's block does not look at, it has no descriptors.
    own = tuple(own) if earlier == "block_stage" else (torch.zeros(1, width),) * index
    history = (*((descriptor,) for descriptor in stages), own)
    widths = [[descriptor.shape[1] for descriptor in stage] for stage in history]
    block.se = HistoryPKCAM(width, widths, earlier=earlier)
    holder = nn.Module()
    holder.layer1 = nn.Sequential(*[nn.Identity()] * index, block)
    weights = {f"stage1.{index}.{key}": value for key, value in golden.state_dict.items()}
    holder.load_state_dict(checkpoint_filter_fn(weights, holder))

    check_module(Given(block, history), golden, 1e-5)
    names = {"residual.1.": "bn1.", "residual.4.": "bn2.", "residual.7.": "bn3.", "shortcut.1.": "downsample.1."}
    for key, expected in golden.meta.get("buffers_after", {}).items():
        for official, ours in names.items():
            key = key.replace(official, ours)
        torch.testing.assert_close(block.get_buffer(key), torch.tensor(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in MODELS]
)
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


def test_checkpointing_changes_nothing():
    results = []
    for enable in (False, True):
        model = build("va_resnet18n_pkcam", earlier="block_stage").double().train()
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
