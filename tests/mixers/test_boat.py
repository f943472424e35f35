"""BOAT's feature-space attention against the official code's recorded outputs, gradients and orders."""

import pytest
import torch

from visionattn.mixers import FeatureSpaceLocalAttention
from visionattn.ops import balanced_bisection, cluster_attention
from visionattn.profiling.operator_counter import saved_bytes
from visionattn.reference.boat import naive_of
from visionattn.testing.fixtures import load, normal, relative_error

FIXTURES = [
    "boat_swin_fsla_module_1x196x64_eval",
    "boat_cswin_fsla_module_1x196x64_eval",
    "boat_cswin_fsla_module_2x784x64_eval",
    "boat_cswin_fsla_module_2x49x64_eval",
]


def official(name):
    """The fixture, and the module as the fixture's network has it."""
    golden = load(name)
    scale = 1.0 if "cswin" in name else None
    module = FeatureSpaceLocalAttention(64, num_heads=2, scale=scale, legacy=True).eval()
    module.load_state_dict(golden.state_dict)
    return golden, module


def small(**kwargs):
    torch.manual_seed(0)
    return FeatureSpaceLocalAttention(24, num_heads=3, **{"cluster_size": 7, "overlap": 3, **kwargs})


@pytest.mark.parametrize("name", FIXTURES)
def test_golden_attention_in_the_recorded_clusters(name):
    golden, module = official(name)
    batch, tokens, dim = golden.input.shape
    side = int(tokens**0.5)
    x = golden.input.requires_grad_()
    qkv = module.qkv(x).view(batch, tokens, 3, 2, 32)
    order = golden.arrays["aux_perm"].unflatten(2, (-1, 49))
    out, v = cluster_attention(qkv, order, overlap=20, scale=module.scale, pair_images=tokens == 49)
    v = v.reshape(batch, side, side, dim).permute(0, 3, 1, 2)
    out = module.proj(out.flatten(2) + module.get_v(v).flatten(2).mT)
    check(golden, x, out)


@pytest.mark.parametrize("name", FIXTURES)
def test_golden(name):
    golden, module = official(name)
    batch, tokens, _ = golden.input.shape
    x = golden.input.requires_grad_()
    q = module.qkv(x).view(batch, tokens, 3, 2, 32)[:, :, 0].transpose(1, 2)
    assert torch.equal(balanced_bisection(q, cluster_size=49).flatten(2), golden.arrays["aux_perm"])
    check(golden, x, module(x.unflatten(1, (int(tokens**0.5), -1))).flatten(1, 2))


def check(golden, x, out):
    (out * normal(golden.meta["input_seed"] + 1, out.shape)).sum().backward()
    assert relative_error(out, golden.arrays["out_0"]) < 1e-5
    assert relative_error(x.grad, golden.arrays["grad_x"]) < 1e-5


@pytest.mark.parametrize("scale", [None, 1.0])
@pytest.mark.parametrize("size", [(2, 4, 7), (1, 14, 8), (3, 8, 7), (2, 32, 7), (4, 7, 1)], ids=str)
def test_agrees_with_the_naive_formulation(size, scale):
    module = small(scale=scale, legacy=True).double()
    naive = naive_of(module).double()
    results = []
    for block in (naive, module):
        torch.manual_seed(1)
        x = torch.randn(*size, 24, dtype=torch.float64, requires_grad=True)
        out = block(x)
        (out * torch.linspace(0, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
        results.append([out, x.grad, *(p.grad for _, p in sorted(block.named_parameters()))])
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def leaks(module, size):
    """Whether an image's result depends on the others in its batch, or on its place among them."""
    x = torch.randn(4, *size, 24, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        out = module(x)
        order = torch.tensor([2, 0, 3, 1])
        moved = torch.equal(module(x[order]), out[order])
        other = x.clone()
        other[1] += 1
        changed = torch.equal(module(other)[[0, 2, 3]], out[[0, 2, 3]])
    return not moved, not changed


@pytest.mark.parametrize("legacy", [False, True], ids=["", "legacy"])
@pytest.mark.parametrize("size", [(7, 7), (14, 7), (14, 14), (9, 5), (13, 11)], ids=str)
def test_images_of_a_batch_do_not_see_each_other(size, legacy):
    module = small(cluster_size=49, overlap=20, legacy=legacy)
    coupled = legacy and size == (7, 7)
    assert leaks(module, size) == (coupled, coupled)


def test_legacy_refuses_odd_batches_of_single_clusters():
    module = small(cluster_size=49, overlap=20, legacy=True)
    for batch in (1, 3):
        with pytest.raises(ValueError, match=f"which must be even, got {batch}"):
            module(torch.randn(batch, 7, 7, 24))
        assert module(torch.randn(batch, 7, 14, 24)).shape == (batch, 7, 14, 24)
        assert module(torch.randn(batch, 5, 7, 24)).shape == (batch, 5, 7, 24)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 3), (5, 10), (97, 1), (21, 21)], ids=str)
@pytest.mark.parametrize("batch", [1, 3])
def test_any_grid(batch, size):
    module = small(cluster_size=49, overlap=20)
    x = torch.randn(batch, *size, 24, requires_grad=True)
    out = module(x)
    assert out.shape == x.shape and torch.equal(out, module(x))
    out.square().sum().backward()
    assert x.grad.isfinite().all() and all(p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("size", [(4, 7), (5, 6)], ids=str)
def test_gradcheck(size):
    x = torch.randn(2, *size, 24, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(small().double(), (x,), fast_mode=True)


def test_dropout_is_for_training():
    module = small(attn_drop=0.5, proj_drop=0.5)
    x = torch.randn(2, 5, 6, 24)
    assert not torch.equal(module(x), module(x))
    module.eval()
    assert torch.equal(module(x), module(x))


def recorded(module, x):
    """Bytes saved for gradients at any time of a forward pass, without parameters; memory saved twice counts once."""
    saved = []  # holds on to what is freed before the end, so that no address comes back
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        out = module(x)
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in saved}
    assert out.requires_grad
    return sum(size for address, size in storages.items() if address not in own)


@pytest.mark.parametrize(("size", "heads", "share"), [((56, 56, 96), 3, 0.27), ((14, 14, 384), 12, 0.44)], ids=str)
def test_keeps_little_for_the_backward_pass(size, heads, share):
    module = FeatureSpaceLocalAttention(size[-1], num_heads=heads)
    x = torch.randn(2, *size)
    kept = recorded(module, x)
    assert kept == saved_bytes(module, x)
    assert kept < 8.2 * x.numel() * x.element_size()
    assert kept < share * recorded(naive_of(module), x)


def test_hooks_on_the_convolution_are_heard():
    module = small()
    x = torch.randn(2, 5, 6, 24)
    expected, seen = module(x), []
    module.get_v.register_forward_hook(lambda layer, args, out: seen.append(args[0]))
    torch.testing.assert_close(module(x), expected)
    assert torch.equal(seen[0].permute(0, 2, 3, 1), module.qkv(x)[..., 48:])


@pytest.mark.slow
@pytest.mark.parametrize("size", [(5, 5), (7, 8), (7, 7)], ids=["padded", "exact", "pairs"])
def test_graphs_of_maps_with_ties(size, tmp_path):
    """Beyond the contract: tokens that tie are sorted alike, and images in pairs."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX parity needs the [test] extra")
    kwargs = {"cluster_size": 49, "overlap": 20, "legacy": True} if size == (7, 7) else {}
    module = small(**kwargs).eval()
    x = torch.randn(6, *size, 24)
    x[:, -1] = x[:, -2]  # tokens that tie
    expected = module(x)
    example, dim = (torch.randn(4, *size, 24),), torch.export.Dim
    assert relative_error(torch.compile(module, fullgraph=True, backend="aot_eager")(x), expected) < 1e-6
    program = torch.export.export(module, example, dynamic_shapes=({0: dim.AUTO},))
    assert relative_error(program.module()(x), expected) < 1e-6
    path = tmp_path / "mixer.onnx"
    torch.onnx.export(module, example, path, dynamo=True, dynamic_shapes=({0: dim.AUTO},), verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert relative_error(torch.from_numpy(out), expected) < 1e-5


@pytest.mark.slow
def test_compiles_with_inductor():
    module = small()
    compiled = torch.compile(module, fullgraph=True)
    for shape in [(2, 7, 8), (3, 7, 8), (5, 7, 8), (2, 5, 9)]:
        torch.manual_seed(1)
        data, grads = torch.randn(*shape, 24), []
        for block in (module, compiled):
            x = data.clone().requires_grad_()
            block(x).square().sum().backward()
            grads.append(x.grad)
        assert relative_error(*grads) < 1e-5


@pytest.mark.parametrize("size", [(7, 8), (5, 9)], ids=str)
def test_bfloat16_in_the_same_clusters(size):
    # In other clusters, where rounded queries lead, the result is another one.
    qkv = torch.randn(2, size[0] * size[1], 3, 2, 8, generator=torch.Generator().manual_seed(0))
    order = balanced_bisection(qkv[:, :, 0].transpose(1, 2), cluster_size=7)
    out, _ = cluster_attention(qkv.bfloat16(), order, overlap=3)
    assert out.dtype == torch.bfloat16
    assert relative_error(out, cluster_attention(qkv, order, overlap=3)[0]) < 0.02


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 25}, "dim=25, num_heads=3"),
        ({"dim": 24, "num_heads": 0}, "num_heads=0"),
        ({"dim": 24, "cluster_size": 1}, "cluster_size must be at least 2, got 1"),
        ({"dim": 24, "overlap": 50}, r"overlap must be from 0 to cluster_size \(49\), got 50"),
        ({"dim": 24, "overlap": -1}, "got -1"),
        ({"dim": 24, "iterations": -1}, "iterations must be at least 0, got -1"),
        ({"dim": 24, "attn_drop": 2.0}, "got 2.0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        FeatureSpaceLocalAttention(**{"num_heads": 3, **arguments})
