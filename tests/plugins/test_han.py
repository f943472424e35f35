"""HAN's attention against the official code's recorded outputs and gradients, alone and in a whole network."""

import pytest
import torch
from super_resolution import HAN

from visionattn.plugins import ChannelSpatialAttention, LayerAttention
from visionattn.reference.han import naive_of
from visionattn.testing.fixtures import check_module, load, relative_error


@pytest.mark.parametrize("name", ["han_lam_1x11x16x6x6_eval", "han_lam_2x5x8x9x7_eval"])
@pytest.mark.parametrize("stated", [True, False])
def test_golden_of_layers(name, stated):
    golden = load(name)
    channels, layers = golden.meta["constructor"]["channels"], golden.meta["constructor"]["layers"]
    module = LayerAttention(channels, layers=layers if stated else None)
    module.load_state_dict(golden.state_dict)
    # The recorded gradients are up to 2.4e-5 from those of float64: energies are sums of hundreds of products, and the
    # order in which a CPU adds them shows in their softmax.
    check_module(module, golden, 1e-5, gradient_tolerance=5e-5)


@pytest.mark.parametrize("name", ["han_csam_1x48x17x9_eval", "han_csam_2x16x14x14_eval"])
def test_golden_of_channels_and_positions(name):
    golden = load(name)
    module = ChannelSpatialAttention(golden.meta["constructor"]["channels"])
    module.load_state_dict(golden.state_dict)
    assert sum(p.numel() for p in module.parameters()) == golden.meta["params"]
    check_module(module, golden, 1e-5)


def test_golden_of_the_network():
    golden = load("han_x2_small_eval")
    network = HAN(**golden.meta["constructor"]).eval()
    network.load_state_dict(golden.state_dict)
    assert sum(p.numel() for p in network.parameters()) == golden.meta["params"]
    with torch.inference_mode():
        assert relative_error(network(golden.input), golden.arrays["out_0"]) < 1e-4


@pytest.mark.parametrize("energy", ["sum", "mean", "cosine"])
@pytest.mark.parametrize("favour", ["unlike", "like"])
def test_each_energy_is_that_of_its_steps(energy, favour):
    torch.manual_seed(0)
    module = LayerAttention(4, energy=energy, favour=favour).double()
    torch.nn.init.constant_(module.gamma, 0.7)
    naive, stack = naive_of(module), torch.randn(2, 3, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    weight, results = torch.randn(2, 12, 5, 6, dtype=torch.float64), []
    for one in (module, naive):
        out = one(stack)
        results.append(
            (out, *torch.autograd.grad(out, (stack, one.module.gamma if one is naive else one.gamma), weight))
        )
    for actual, expected in zip(*results, strict=True):
        assert relative_error(actual, expected) < 1e-9


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_layers_side_by_side_are_a_stack(layout):
    module = LayerAttention(20, layers=4)
    torch.nn.init.ones_(module.gamma)
    maps = [torch.randn(2, 5, 6, 7) for _ in range(4)]
    joined = torch.cat(maps, dim=1).contiguous(memory_format=layout)
    torch.testing.assert_close(module(joined), module(torch.stack(maps, dim=1)))
    torch.testing.assert_close(module.weights(joined).sum(2), torch.ones(2, 4))


def test_the_layer_least_alike_weighs_most():
    same, other = torch.ones(1, 1, 2, 3, 3), torch.tensor([1.0, -1.0]).view(1, 1, 2, 1, 1).expand(1, 1, 2, 3, 3)
    stack = torch.cat((same, same, other), dim=1)
    weights = LayerAttention(2).weights(stack)
    assert weights[0].argmax(1).tolist()[:2] == [2, 2] and weights[0, 0, 2] > 0.99
    assert LayerAttention(2, favour="like").weights(stack)[0].argmax(1).tolist()[2] == 2


def test_large_energies_do_not_overflow_in_half_precision():
    """64 * 64 * 64 squares of 4 are far beyond float16."""
    module, stack = LayerAttention(64).half(), torch.full((1, 3, 64, 64, 64), 4.0, dtype=torch.float16)
    torch.nn.init.ones_(module.gamma)
    torch.testing.assert_close(module(stack), 2 * stack.flatten(1, 2))
    with torch.autocast("cpu", torch.bfloat16):
        weights = LayerAttention(64).weights(torch.randn(1, 3, 64, 64, 64))
    assert weights.dtype == torch.float32


@pytest.mark.parametrize(("width", "layers"), [(64, 8), (40, 10), (22, 11), (13, 1), (7, 7)])
def test_a_map_is_divided_by_default(width, layers):
    assert LayerAttention(width).weights(torch.randn(1, width, 3, 3)).shape == (1, layers, layers)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("shape", [(2, 1, 3, 4), (1, 30, 1, 5), (2, 31, 4, 1), (1, 61, 5, 6), (2, 96, 3, 3)], ids=str)
def test_slabs_are_the_whole_volume(shape, layout):
    """Widths around the size of a slab, with all gradients."""
    torch.manual_seed(0)
    module = ChannelSpatialAttention(shape[1]).double()
    torch.nn.init.constant_(module.gamma, -0.6)
    naive = naive_of(module)
    x = torch.randn(shape, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    weight, results = torch.randn_like(x), []
    for one in (module, naive):
        out = one(x)
        results.append((out, *torch.autograd.grad(out, (x, *one.parameters()), weight)))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-10)
    assert module.gates(x)["neighbours"].shape == shape


def test_start_changes_nothing():
    x = torch.randn(2, 24, 9, 7)
    assert torch.equal(LayerAttention(24)(x), x)
    assert torch.equal(ChannelSpatialAttention(24)(x), x)
    assert sum(p.numel() for p in ChannelSpatialAttention(512).parameters()) == 29


@pytest.mark.parametrize(
    ("cls", "arguments", "message"),
    [
        (LayerAttention, {"channels": 0}, "channels must be at least 1, got 0"),
        (LayerAttention, {"channels": 8, "layers": 0}, "layers must be at least 1, got 0"),
        (LayerAttention, {"channels": 8, "energy": "max"}, "energy must be one of sum, mean, cosine, got 'max'"),
        (LayerAttention, {"channels": 8, "favour": "all"}, "favour must be one of unlike, like, got 'all'"),
        (ChannelSpatialAttention, {"channels": 0}, "channels must be at least 1, got 0"),
    ],
)
def test_bad_arguments(cls, arguments, message):
    with pytest.raises(ValueError, match=message):
        cls(**arguments)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 8, 4, 4), "layers must divide the width of the map, got layers=3 and 8 channels"),
        ((1, 4, 6, 4, 4), "a stack must hold layers=3 maps, got 4"),
        ((8, 4), r"a map \(B, C, H, W\) or a stack \(B, N, C, H, W\), got a tensor of shape \(8, 4\)"),
    ],
)
def test_bad_layers(shape, message):
    with pytest.raises(ValueError, match=message):
        LayerAttention(8, layers=3)(torch.randn(shape))


def test_weights_of_a_volume_become_channels_last():
    """`Module.to` refuses to make so what has five axes."""
    module, x = ChannelSpatialAttention(8), torch.randn(2, 8, 5, 6)
    torch.nn.init.ones_(module.gamma)
    expected = module(x)
    x = x.to(memory_format=torch.channels_last)
    torch.testing.assert_close(module.to(memory_format=torch.channels_last)(x), expected)
