"""ParaFormer's parallel attention and wave encoder against the recorded equations, and what two sets promise."""

import pytest
import torch

from visionattn import catalog
from visionattn.mixers import ParallelSelfCrossAttention, WavePositionEncoder, resolve_mixer
from visionattn.reference.paraformer import naive_of
from visionattn.testing.contracts import perturbed
from visionattn.testing.fixtures import load, normal, relative_error


def check(golden, module, run):
    """Output and the derivative along the recorded direction, in float64."""
    module.load_state_dict(golden.state_dict)
    module.double().eval()
    x, seed = golden.input.double().requires_grad_(), golden.meta["input_seed"]
    out = run(module, x)
    assert relative_error(out, golden.arrays["out_0"]) < 1e-6
    (out * normal(seed + 1, out.shape)).sum().backward()
    along = (x.grad * normal(seed + 2, x.shape)).sum().item()
    assert along == pytest.approx(golden.meta["control"]["directional_derivative"], rel=1e-5)


def test_golden():
    golden = load("paraformer_parallel_2x90x48_m50_h4_eval")
    official = golden.meta["constructor"]
    sizes = official["first_set"], official["second_set"]
    module = ParallelSelfCrossAttention(official["dim"], num_heads=official["heads"])
    check(golden, module, lambda module, x: torch.cat(module(*x.split(sizes, 1)), 1))


def test_golden_of_the_wave_encoder():
    golden = load("paraformer_wavepe_2x60x34_eval")
    dim = golden.meta["constructor"]["dim"]
    check(golden, WavePositionEncoder(dim), lambda module, x: module(*x.split((dim, 2), 2)))


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return perturbed(ParallelSelfCrossAttention(12, num_heads=3)).double()


def pair(*sizes):
    return [torch.randn(2, size, 12, dtype=torch.float64, requires_grad=True) for size in sizes]


@pytest.mark.parametrize("sizes", [(1, 1), (5, 9), (6, 6)], ids=str)
def test_agrees_with_the_formula(layer, sizes):
    sets, results = pair(*sizes), []
    for one in (layer, naive_of(layer)):
        outs = one(*sets)
        results.append((*outs, *torch.autograd.grad(sum(out.square().sum() for out in outs), sets)))
    for ours, literal in zip(*results, strict=True):
        assert relative_error(ours, literal) < 1e-9


def test_swapping_the_sets_swaps_the_results(layer):
    a, b = pair(5, 9)
    for out, swapped in zip(layer(a, b), reversed(layer(b, a)), strict=True):
        torch.testing.assert_close(out, swapped)


def test_the_same_set_twice_has_the_same_attention_to_itself_and_to_the_other(layer):
    (a,) = pair(5)
    own, other = layer.weights(a, a)
    torch.testing.assert_close(own[:, :, :5, :5], other[:, :, :5, 5:])
    one, two = layer(a, a)
    torch.testing.assert_close(one, two)


def test_weights_are_what_is_applied(layer):
    a, b = pair(5, 9)
    tokens = torch.cat([a, b], 1)
    values = layer.v(tokens).unflatten(-1, (3, -1)).transpose(1, 2)
    own, other = ((rows @ values).transpose(1, 2).flatten(2) for rows in layer.weights(a, b))
    out = tokens + layer.mlp(torch.cat([tokens, own, other], 2))
    torch.testing.assert_close(torch.cat(layer(a, b), 1), out)


def test_masked_tokens_are_as_if_they_were_not_there(layer):
    a, b = pair(5, 9)
    mask_a, mask_b = torch.ones(2, 5, dtype=torch.bool), torch.ones(2, 9, dtype=torch.bool)
    mask_a[:, 3:], mask_b[:, 4:] = False, False
    masked, short = layer(a, b, mask_a, mask_b), layer(a[:, :3], b[:, :4])
    torch.testing.assert_close(masked[0][:, :3], short[0])
    torch.testing.assert_close(masked[1][:, :4], short[1])


def test_pictures_of_a_batch_do_not_see_each_other(layer):
    a, b = pair(5, 9)
    for out, one in zip(layer(a, b), layer(a[:1], b[:1]), strict=True):
        torch.testing.assert_close(out[:1], one)


def test_takes_maps_of_any_sizes(layer):
    a, b = torch.randn(2, 3, 4, 12, dtype=torch.float64), torch.randn(2, 1, 5, 12, dtype=torch.float64)
    maps, tokens = layer(a, b), layer(a.flatten(1, 2), b.flatten(1, 2))
    for out, flat in zip(maps, tokens, strict=True):
        torch.testing.assert_close(out.flatten(1, 2), flat)
    assert maps[0].shape == a.shape and maps[1].shape == b.shape


def test_half_precision_meta_and_compile():
    layer = ParallelSelfCrossAttention(12, num_heads=3)
    a, b = torch.randn(2, 5, 12), torch.randn(2, 9, 12)
    expected = layer(a, b)
    for out, eager in zip(torch.compile(layer, fullgraph=True, backend="aot_eager")(a, b), expected, strict=True):
        assert relative_error(out, eager) < 1e-5
    batch = {0: torch.export.Dim.DYNAMIC}
    program = torch.export.export(layer, (a, b), dynamic_shapes={"xa": batch, "xb": batch})
    for out, eager in zip(program.module()(a.repeat(2, 1, 1), b.repeat(2, 1, 1)), expected, strict=True):
        assert relative_error(out[:2], eager) < 1e-5
    half = ParallelSelfCrossAttention(12, num_heads=3, dtype=torch.bfloat16)
    half.load_state_dict(layer.state_dict())
    for out, eager in zip(half(a.bfloat16(), b.bfloat16()), expected, strict=True):
        assert out.dtype == torch.bfloat16 and relative_error(out, eager) < 0.05
    meta = ParallelSelfCrossAttention(12, num_heads=3, device="meta")
    assert meta(a.to("meta"), b.to("meta"))[1].shape == b.shape


def test_is_found_and_says_that_it_needs_two_sets():
    assert catalog.get("mixer", "paraformer").factory is ParallelSelfCrossAttention
    with pytest.raises(ValueError, match=r"'paraformer' needs more than a map \(xb\)"):
        resolve_mixer("paraformer")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": 3}, "dim=8, num_heads=3"),
        ({"hidden_ratio": 0}, "hidden_ratio must be at least 1, got 0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ParallelSelfCrossAttention(8, **arguments)


def test_bad_input():
    layer, x = ParallelSelfCrossAttention(8, num_heads=2), torch.randn(2, 3, 8)
    for wrong, message in (
        ((x, torch.randn(2, 3, 6)), r"xb must be tokens \(B, N, 8\) .*, got \(2, 3, 6\)"),
        ((x, torch.randn(1, 3, 8)), "xa and xb must have the same batch"),
        ((x, x, torch.ones(2, 4, dtype=torch.bool)), r"mask_a must be bool of shape \(2, 3\), got torch.bool \(2, 4\)"),
        ((x, x, None, torch.ones(2, 3)), "mask_b must be bool .* got torch.float32"),
    ):
        with pytest.raises(ValueError, match=message):
            layer(*wrong)
    with pytest.raises(ValueError, match="mask_b leaves no token of 1 of the sets"):
        layer(x, x, None, torch.tensor([[True] * 3, [False] * 3]))
    with pytest.raises(ValueError, match=r"position must have shape \(B, N, 2\), got \(2, 3, 3\)"):
        WavePositionEncoder(8)(x, torch.zeros(2, 3, 3))
    with pytest.raises(ValueError, match="dim must be at least 1, got 0"):
        WavePositionEncoder(0)
