"""Sentence attention, ACAT and class semantics against recorded outputs, and what they refuse."""

import copy

import pytest
import timm
import torch
from torch.nn import functional as F

from visionattn.models.builder import rename_keys
from visionattn.plugins import (
    ACAT,
    ClassSemanticAttention,
    SaliencyFusion,
    SaliencyModulation,
    SentenceAttention,
    SliceAttention,
)
from visionattn.reference import acat, csa, sentence
from visionattn.testing.contracts import perturbed
from visionattn.testing.fixtures import load, normal, relative_error


def check(golden, outputs, x):
    (outputs[0] * normal(golden.meta["input_seed"] + 1, outputs[0].shape)).sum().backward()
    for number, out in enumerate(outputs):
        assert relative_error(out, golden.arrays[f"out_{number}"]) < 1e-5, number
    assert relative_error(x.grad, golden.arrays["grad_x"]) < 1e-5


def test_golden_sentence_attention():
    golden = load("sentenceattn_2x48x7x10_d32_eval")
    module, x = SentenceAttention(48, 32), golden.input.requires_grad_()
    module.load_state_dict(rename_keys(golden.state_dict, module.official_keys))
    assert sum(p.numel() for p in module.parameters()) == golden.meta["params"]
    flat, text = x.split((48 * 70, 32), dim=1)
    check(golden, (module(flat.reshape(2, 48, 7, 10), text), module.gate(text)), x)


def test_golden_acat():
    golden = load("acat_modulation_2x48x7x10_c32_eval")
    module, x = SaliencyModulation(32).eval(), golden.input.requires_grad_()
    module.load_state_dict(rename_keys(golden.state_dict, module.official_keys))
    features, saliency = x.split((32, 16), dim=1)
    check(golden, (module(features, saliency), module.mask(saliency, (7, 10))), x)
    golden = load("acat_fusion_2x32x4x4_eval")
    module, x = SaliencyFusion(), golden.input.requires_grad_()
    module.load_state_dict(golden.state_dict)
    last, *masks = x.split((512, 1024, 256, 64), dim=1)
    masks = [mask.reshape(2, 1, side, side).sigmoid() for mask, side in zip(masks, (32, 16, 8), strict=True)]
    check(golden, (module(last.reshape(2, 32, 4, 4), masks), module.mask(masks, (4, 4))), x)


def test_golden_class_semantics():
    golden = load("csa_2x32x9x8_r20_eval")
    module = ClassSemanticAttention(32, cond_channels=20, hidden=8).double()
    module.load_state_dict(golden.state_dict)
    x = golden.input.double().requires_grad_()
    parts = x.split((32, 20), dim=1)
    out, gates = module(*parts), module.gates(*parts)
    for number, actual in enumerate((out, gates["channel"].flatten(1), gates["spatial"])):
        assert relative_error(actual, golden.arrays[f"out_{number}"]) < 1e-5
    seed = golden.meta["input_seed"]
    (gradient,) = torch.autograd.grad((out * normal(seed + 1, out.shape)).sum(), x)
    slope = (gradient * normal(seed + 2, x.shape)).sum().item()
    assert slope == pytest.approx(golden.meta["control"]["directional_derivative"], rel=1e-5)


GATES = {
    "sentence": (sentence, lambda **kw: SentenceAttention(24, 10, **kw), (10,)),
    "sentence, rescaled": (sentence, lambda **kw: SentenceAttention(24, 10, rescale=True, **kw), (10,)),
    "acat": (acat, lambda **kw: SaliencyModulation(24, **kw), (5, 9, 7)),
    "csa": (csa, lambda **kw: ClassSemanticAttention(24, cond_channels=10, **kw), (10, 9, 7)),
}
every_gate = pytest.mark.parametrize("name", GATES)


def inputs(name, batch=2, size=(9, 7), **kwargs):
    generator = torch.Generator().manual_seed(3)
    shape = GATES[name][2]
    return [torch.randn(batch, *s, generator=generator).to(**kwargs) for s in ((24, *size), shape)]


@every_gate
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_equals_its_literal_formula(name, train):
    literal, build, _ = GATES[name]
    module = perturbed(build()).double()
    x, condition = inputs(name, dtype=torch.float64)
    results = []
    for one in (module, literal.naive_of(module)):
        leaves = [value.clone().requires_grad_() for value in (x, condition)]
        out = one.train(train)(*leaves)
        results.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
    for ours, theirs in zip(*results, strict=True):
        assert relative_error(ours, theirs) < 1e-9


@every_gate
def test_promises(name):
    """What the contracts say of plug-ins with one input."""
    _, build, _ = GATES[name]
    module = perturbed(build().eval())
    x, condition = inputs(name, 3)
    out = module(x, condition)
    order = [2, 0, 1]
    assert relative_error(module(x[order], condition[order]), out[order]) < 1e-6
    nhwc = module(x.to(memory_format=torch.channels_last), condition)
    assert nhwc.is_contiguous(memory_format=torch.channels_last) and relative_error(nhwc, out) < 1e-6
    half = copy.deepcopy(module).bfloat16()(x.bfloat16(), condition)
    assert half.dtype == torch.bfloat16 and relative_error(half, out) < 0.05
    with torch.autocast("cpu", torch.bfloat16):
        assert relative_error(module(x, condition), out) < 0.05
    for size in ((1, 1), (1, 9), (61, 5)):
        big, _ = inputs(name, 3, size)
        assert module(big, condition).shape == big.shape
    meta = build(device="meta", dtype=torch.bfloat16)
    value = torch.empty(2, 24, 5, 4, device="meta", dtype=torch.bfloat16)
    assert meta(value, meta.example_condition(value)).shape == value.shape
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert relative_error(compiled(x, condition), out) < 1e-5
    batch = {0: torch.export.Dim.DYNAMIC}
    program = torch.export.export(module, (x, condition), dynamic_shapes=(batch, batch))
    assert relative_error(program.module()(x[:2], condition[:2]), module(x[:2], condition[:2])) < 1e-5
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(torch.nan)
    module.reset_parameters()
    assert all(parameter.isfinite().all() for parameter in module.parameters())


@pytest.mark.parametrize("name", ["sentence", "acat", "csa"])
def test_converts_to_onnx(name):
    runtime = pytest.importorskip("onnxruntime", reason="ONNX parity needs the [test] extra")
    module = perturbed(GATES[name][1]().eval())
    x, condition = inputs(name)
    batch = {0: torch.export.Dim.DYNAMIC}
    program = torch.onnx.export(module, (x, condition), dynamo=True, dynamic_shapes=(batch, batch), verbose=False)
    session = runtime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    x, condition = (torch.cat((value, value + 1)) for value in (x, condition))
    names = [node.name for node in session.get_inputs()]
    (out,) = session.run(None, dict(zip(names, (x.numpy(), condition.numpy()), strict=True)))
    assert relative_error(torch.from_numpy(out), module(x, condition)) < 1e-5


@every_gate
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: None, r"is missing: it is the second input, \(B, "),
        (lambda c: c[:1], r"must be \(B, .*\) = \(2, .*\), got \(1, "),
        (lambda c: c[..., None], r"must be \(B, .*, got \(2, "),
        (lambda c: c.long(), "must be a tensor of floating-point numbers, got torch.int64"),
        (lambda c: c.index_fill(0, torch.tensor([1]), torch.nan), "must be finite; that of picture 1 of the batch is"),
    ],
    ids=["missing", "batch", "shape", "dtype", "nan"],
)
def test_bad_conditions(name, change, message):
    module = GATES[name][1]()
    x, condition = inputs(name)
    with pytest.raises(ValueError, match=f"^{module.condition_name} {message}"):
        module(x, change(condition))


def test_wrong_widths():
    x = torch.ones(2, 8, 3, 3)
    with pytest.raises(ValueError, match=r"sentence must be \(B, 6\) = \(2, 6\), got \(2, 5\)"):
        SentenceAttention(8, 6)(x, torch.ones(2, 5))
    with pytest.raises(ValueError, match=r"semantics must be \(B, 6, h, w\) = \(2, 6, h, w\), got \(2, 5, 3, 3\)"):
        ClassSemanticAttention(8, cond_channels=6)(x, torch.ones(2, 5, 3, 3))
    for build in (lambda: SentenceAttention(8, 0), lambda: ClassSemanticAttention(8, cond_channels=0)):
        with pytest.raises(ValueError, match="must be at least 1, got 0"):
            build()
    with pytest.raises(ValueError, match="kernel_size must be a positive odd number, got 4"):
        SaliencyModulation(8, kernel_size=4)
    with pytest.raises(ValueError, match="dims must be one of 1, 2, got 3"):
        ClassSemanticAttention(8, dims=3)
    with pytest.raises(ValueError, match="masks must be 3, one a stage, got 2"):
        SaliencyFusion()(x, [x[:, :1]] * 2)


def test_sequences():
    torch.manual_seed(0)
    module = ClassSemanticAttention(12, cond_channels=5, dims=1)
    x, semantics = torch.randn(2, 12, 11), torch.randn(2, 5, 11)
    assert relative_error(module(x, semantics), csa.naive_of(module)(x, semantics)) < 1e-6
    assert module(x, semantics[..., :4]).shape == x.shape
    own = ClassSemanticAttention(12, dims=1)
    assert torch.equal(own(x), own(x, x))
    flat = ClassSemanticAttention(12, cond_channels=5)
    flat.load_state_dict({k: v for k, v in module.state_dict().items() if v.ndim < 3}, strict=False)
    with torch.no_grad():
        for key in ("conv1", "conv2"):
            kernel = module.get_parameter(f"position.{key}.weight")
            grown = torch.zeros_like(flat.get_parameter(f"position.{key}.weight"))
            grown[:, :, grown.shape[2] // 2] = kernel
            flat.get_parameter(f"position.{key}.weight").copy_(grown)
    both = flat(x[:, :, None], semantics[:, :, None])
    assert relative_error(both[:, :, 0], module(x, semantics)) < 1e-6


def test_the_sentence_s_gate_sums_to_one():
    text = torch.randn(3, 10)
    torch.testing.assert_close(SentenceAttention(24, 10).gate(text).sum(1), torch.ones(3))
    torch.testing.assert_close(SentenceAttention(24, 10, rescale=True).gate(text).mean(1), torch.ones(3))


def test_saliency_of_another_size_is_resized():
    torch.manual_seed(0)
    module, x = SaliencyModulation(4).eval(), torch.randn(1, 4, 6, 5)
    saliency = torch.rand(1, 1, 6, 5)
    large = saliency.repeat_interleave(3, 2).repeat_interleave(3, 3)
    torch.testing.assert_close(module(x, large), module(x, saliency))
    assert module(x, saliency[..., :2, :2]).shape == x.shape


def branches(**kwargs):
    torch.manual_seed(0)
    return ACAT(timm.create_model("resnet18", num_classes=3, **kwargs), timm.create_model("resnet18", in_chans=1))


def test_the_network_of_two_branches():
    model = branches().eval()
    x, saliency = torch.randn(2, 3, 64, 96), torch.rand(2, 1, 64, 96)
    out = model(x, saliency)
    assert out.shape == (2, 3)
    own, other = model.image, model.saliency
    stems = [n.maxpool(n.act1(n.bn1(n.conv1(y)))) for n, y in ((own, x), (other, saliency))]
    masks = []
    for number in (1, 2, 3):
        stems = [getattr(n, f"layer{number}")(y) for n, y in zip((own, other), stems, strict=True)]
        gate = model.masks[number - 1]
        masks.append(gate.bn(gate.conv(stems[1].max(1, keepdim=True).values)).sigmoid())
        stems[0] = stems[0] + stems[0] * masks[-1]
    last = own.layer4(stems[0])
    joint = model.fusion.fusion(torch.cat([F.adaptive_avg_pool2d(m, last.shape[2:]) for m in masks], 1))
    torch.testing.assert_close(out, own.forward_head(last + last * joint))
    model.train()(x, saliency).sum().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]
    with pytest.raises(ValueError, match=r"saliency must be \(B, S, 64, 96\) = \(2, S, 64, 96\), got \(2, 1, 9, 9\)"):
        model(x, saliency[..., :9, :9])
    with pytest.raises(ValueError, match="image must be a ResNet of timm's, got VisionTransformer without"):
        ACAT(timm.create_model("vit_tiny_patch16_224", depth=1), timm.create_model("resnet18"))


def test_slices_of_a_scan():
    torch.manual_seed(0)
    module, x = SliceAttention(6, 4).eval(), torch.randn(2, 4, 6)
    weights = module.fc2(F.leaky_relu(module.fc1(x.reshape(2, 24)))).sigmoid()
    torch.testing.assert_close(module(x), (x * weights[:, :, None]).sum(1))
