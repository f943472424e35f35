"""PKCAM's promises: any map, any layout, any dtype, compile, export, ONNX; each gate and each error.

The golden blocks are in tests/models/test_va_pkcam_resnet.py, since the reference records whole residual blocks.
"""

import pytest
import torch
from torch.nn import functional as F

from visionattn.plugins import PKCAM, list_plugins, resolve_plugin
from visionattn.testing.fixtures import relative_error

CHANNELS = 24
VARIANTS = {
    "local": {},
    "stage": {"stage_widths": (6, 12, 24)},
    "block": {"block_count": 2},
    "block_stage": {"stage_widths": (6, 12), "block_count": 1},
    "learned": {"stage_widths": (6, 12, 12), "upsample": "learned"},
    "se": {"stage_widths": (12,), "block_count": 1, "inner": "se"},
}
SIZES = [(1, 1), (1, 9), (7, 1), (2, 3), (13, 13), (17, 9), (61, 5)]
each_variant = pytest.mark.parametrize("variant", VARIANTS)
# The one with every gate; making graphs of the others as well is slow.
full_variant = pytest.mark.parametrize(
    "variant", [name if name == "block_stage" else pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS]
)


def build(variant, **kwargs):
    torch.manual_seed(0)
    return PKCAM(CHANNELS, **VARIANTS[variant], **kwargs)


def inputs(variant, size=(10, 7), batch=2, **kwargs):
    torch.manual_seed(1)
    x = torch.randn(batch, CHANNELS, *size, **kwargs)
    stage = [torch.randn(batch, width, **kwargs) for width in VARIANTS[variant].get("stage_widths", ())]
    block = [torch.randn(batch, CHANNELS, **kwargs) for _ in range(VARIANTS[variant].get("block_count", 0))]
    return x, stage, block


def to(tensors, *args):
    x, stage, block = tensors
    return x.to(*args), [e.to(*args) for e in stage], [e.to(*args) for e in block]


def widened(descriptor):
    return descriptor[:, torch.arange(CHANNELS) % descriptor.shape[1]]


def test_has_no_name_among_the_plug_ins_of_one_map():
    assert "pkcam" not in list_plugins()
    with pytest.raises(ValueError, match=r"'pkcam' needs more than a map \(stage, block\): only its own networks"):
        resolve_plugin("pkcam")


@each_variant
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_keeps_the_shape_of_any_map(variant, size):
    x, stage, block = inputs(variant, size, requires_grad=True)
    module = build(variant)
    out, descriptor = module(x, stage, block)
    assert out.shape == x.shape and out.isfinite().all()
    torch.testing.assert_close(descriptor, x.mean((2, 3)))
    out.square().sum().backward()
    assert all(t.grad is not None and t.grad.isfinite().all() for t in (x, *stage, *block))
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_stage_and_block_formula():
    module = build("block_stage")
    x, stage, block = inputs("block_stage")
    d = x.mean((2, 3))
    kernel = {name: p[:, :, 0] for name, p in module.named_parameters() if p.ndim == 4}
    eca = lambda v, name: F.conv1d(v[:, None], kernel[name], padding=1)[:, 0].sigmoid()  # noqa: E731
    a, b, c = module.stage_gate.mix.weight[0]
    of_stage = eca((a * widened(stage[0]) + b * widened(stage[1]) + c * d).relu(), "stage_gate.gate.conv.weight")
    a, b = module.block_gate.mix.weight[0]
    of_block = eca((a * block[0] + b * d).relu(), "block_gate.gate.conv.weight")
    a, b, c = module.mix.weight[0]
    gate = (a * eca(d, "local_gate.conv.weight") + b * of_stage + c * of_block).sigmoid()
    torch.testing.assert_close(module(x, stage, block)[0], x * (1 + gate)[..., None, None])


def test_learned_upsampling_doubles_half_widths_and_tiles_the_rest():
    gate = build("learned").stage_gate
    half, quarter = torch.randn(2, 12), torch.randn(2, 6)
    doubled = F.conv1d(half[:, None], gate.upsample.weight[:, :, 0], padding=1).relu()
    torch.testing.assert_close(gate.widen(half), torch.cat((doubled[:, 0], doubled[:, 1]), 1))
    torch.testing.assert_close(gate.widen(quarter), widened(quarter))
    assert PKCAM(24, stage_widths=(6, 24), upsample="learned").stage_gate.upsample is None


def test_se_gate_is_two_linear_layers():
    gate = PKCAM(64, inner="se").local_gate
    assert gate.fc1.weight.shape == (4, 64) and gate.fc2.weight.shape == (64, 4)
    assert PKCAM(8, inner="se").local_gate.fc1.out_features == 1
    d = torch.randn(3, 64)
    torch.testing.assert_close(gate(d), ((d @ gate.fc1.weight.T).relu() @ gate.fc2.weight.T).sigmoid())


@pytest.mark.parametrize(("channels", "size"), [(1, 1), (48, 3), (64, 3), (128, 5), (1024, 5), (2048, 7)])
def test_kernel_size_grows_with_the_width(channels, size):
    assert PKCAM(channels).local_gate.conv.weight.shape == (1, 1, 1, size)


def test_starts_as_pytorch_does():
    module = build("block_stage")
    for parameter in module.parameters():
        torch.nn.init.constant_(parameter, 9)
    module.reset_parameters()
    for parameter in module.parameters():
        assert parameter.abs().max() <= parameter.shape[-1] ** -0.5 and parameter.unique().numel() == parameter.numel()


@each_variant
def test_channels_last_goes_through(variant):
    module = build(variant)
    x, stage, block = inputs(variant)
    out, _ = module(x.to(memory_format=torch.channels_last), stage, block)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert relative_error(out, module(x, stage, block)[0]) < 1e-5


@each_variant
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_dtype_in_is_dtype_out(variant, dtype):
    module = build(variant)
    tensors = inputs(variant)
    expected = module(*tensors)
    actual = module.to(dtype)(*to(tensors, dtype))
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == dtype
        assert relative_error(a, e) < (0.03 if dtype == torch.bfloat16 else 1e-5)


@each_variant
def test_autocast(variant):
    module = build(variant)
    tensors = inputs(variant)
    with torch.autocast("cpu", torch.bfloat16):
        out, _ = module(*tensors)
    assert relative_error(out, module(*tensors)[0]) < 0.03


@each_variant
def test_built_on_meta_with_a_dtype(variant):
    module = build(variant, device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in module.parameters()} == {("meta", torch.bfloat16)}
    out, descriptor = module(*to(inputs(variant), "meta", torch.bfloat16))
    assert out.shape == (2, CHANNELS, 10, 7) and descriptor.shape == (2, CHANNELS)


@each_variant
def test_gradcheck(variant):
    module = build(variant).double()
    x, stage, block = to(inputs(variant, (3, 2)), torch.float64)
    tensors = tuple(t.requires_grad_() for t in (x, *stage, *block))
    count = 1 + len(stage)
    assert torch.autograd.gradcheck(lambda x, *e: module(x, e[: count - 1], e[count - 1 :]), tensors, fast_mode=True)


@each_variant
def test_exports_with_dynamic_batch_and_size(variant):
    module = build(variant)
    tensors = inputs(variant, (8, 6))
    program = torch.export.export(module, tensors, dynamic_shapes=dynamic_shapes(tensors, torch.export.Dim.AUTO))
    tensors = inputs(variant, (11, 13), batch=3)
    for a, e in zip(program.module()(*tensors), module(*tensors), strict=True):
        assert relative_error(a, e) < 1e-6


@full_variant
def test_compiles_as_one_graph(variant):
    module = build(variant)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    for size in ((8, 6), (9, 7)):
        gradients = []
        for function in (compiled, module):
            x, stage, block = inputs(variant, size, requires_grad=True)
            function(x, stage, block)[0].square().sum().backward()
            gradients.append(torch.cat([t.grad.flatten() for t in (x, *stage, *block)]))
        assert relative_error(*gradients) < 1e-5


@pytest.mark.slow
@each_variant
def test_compiles_with_inductor(variant):
    module = build(variant)
    tensors = inputs(variant)
    assert relative_error(torch.compile(module, fullgraph=True)(*tensors)[0], module(*tensors)[0]) < 1e-5


@full_variant
def test_onnx_agrees(variant, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX parity needs the [test] extra")
    module = build(variant).eval()
    path = tmp_path / "pkcam.onnx"
    tensors = inputs(variant, (8, 6))
    shapes = dynamic_shapes(tensors, torch.export.Dim.DYNAMIC)
    torch.onnx.export(module, tensors, path, dynamo=True, dynamic_shapes=shapes, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    x, stage, block = inputs(variant, (11, 13), batch=3)
    names = [given.name for given in session.get_inputs()]
    out = session.run(None, {name: t.numpy() for name, t in zip(names, (x, *stage, *block), strict=True)})
    for a, e in zip(out, module(x, stage, block), strict=True):
        assert relative_error(torch.from_numpy(a), e) < 1e-5


def dynamic_shapes(tensors, dim):
    _, stage, block = tensors
    return {0: dim, 2: dim, 3: dim}, [{0: dim} for _ in stage], [{0: dim} for _ in block]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": 0}, "channels=0"),
        ({"channels": 8, "block_count": -1}, "block_count=-1"),
        ({"channels": 8, "stage_widths": (4, 3)}, r"divide channels=8, got \(4, 3\)"),
        ({"channels": 8, "stage_widths": (16,)}, r"divide channels=8, got \(16,\)"),
        ({"channels": 8, "inner": "srm"}, "inner must be one of eca, se, got 'srm'"),
        ({"channels": 8, "upsample": "nearest"}, "upsample must be one of tile, learned, got 'nearest'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        PKCAM(**arguments)


def test_unknown_keywords_are_refused():
    with pytest.raises(TypeError, match="nonsense"):
        PKCAM(8, nonsense=1)


@pytest.mark.parametrize(
    ("stage", "block", "message"),
    [
        ((), (CHANNELS,), r"stage must hold descriptors of widths \(6, 12\), got \(\)"),
        ((12, 6), (CHANNELS,), r"stage must hold descriptors of widths \(6, 12\), got \(12, 6\)"),
        ((6, 12), (12,), r"block must hold descriptors of widths \(24,\), got \(12,\)"),
    ],
)
def test_other_descriptors_than_announced(stage, block, message):
    x, *_ = inputs("local")
    with pytest.raises(ValueError, match=message):
        build("block_stage")(x, [torch.randn(2, w) for w in stage], [torch.randn(2, w) for w in block])
