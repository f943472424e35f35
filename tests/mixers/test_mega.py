"""Mega against recorded outputs and gradients: the official layer, and the form for images."""

import pytest
import torch

from visionattn.mixers import MegaAttention, MultiHeadEMA
from visionattn.reference.mega import naive_of
from visionattn.testing.contracts import perturbed
from visionattn.testing.fixtures import load, normal, relative_error


def built(golden):
    """The layer of a fixture, and what it calls its input: a map."""
    made = dict(golden.meta["constructor"])
    raster = "chunk" in made
    if raster:
        chunk = made.pop("chunk")
        made |= {"layout": "raster", "rel_pos": made.pop("bias"), "window": None if chunk < 0 else chunk}
        made["max_window"] = made.pop("max_positions")
    module = MegaAttention(made.pop("dim"), **made)
    module.load_state_dict(golden.state_dict)
    return module, (lambda x: x.transpose(0, 1).unsqueeze(1)) if raster else (lambda x: x)


@pytest.mark.parametrize(
    "name", ["laplace_20x2x16_chunk5", "softmax_20x2x16", "grid_1x4x6x16_global", "grid_2x5x7x16_w3"]
)
def test_golden(name):
    golden = load(f"mega_{name}_eval")
    module, as_map = built(golden)
    x = golden.input.requires_grad_()
    weight = normal(golden.meta["input_seed"] + 1, golden.meta["input_shape"])
    out = as_map(x) + module(as_map(x))
    (grad,) = torch.autograd.grad((out * as_map(weight)).sum(), x)
    assert relative_error(out, as_map(golden.arrays["out_0"])) < 1e-5
    assert relative_error(grad, golden.arrays["grad_x"]) < 1e-5
    rows, second = module.weights(as_map(x)), golden.arrays["out_1"]
    if name.startswith("grid"):
        values = torch.nn.functional.silu(module.v_proj(module.norm(x))).flatten(1, 2)
        assert relative_error((rows[:, 0] @ values).view_as(second), second) < 1e-5
    else:  # chunks on the diagonal, and nothing elsewhere
        length = second.size(-1)
        chunks = rows.view(2, 20 // length, length, 20 // length, length).diagonal(dim1=1, dim2=3).movedim(-1, 1)
        # Weights of 1e-3 from an error function near its end: CPUs differ by 1.5e-5 of the largest.
        assert relative_error(chunks, second) < 3e-5
        assert relative_error(rows.sum((1, 2, 3)), second.sum((1, 2, 3))) < 1e-5


def test_golden_moving_average():
    golden = load("mega_ema_19x2x16_n4_eval")
    made = golden.meta["constructor"]
    module = MultiHeadEMA(**made)
    module.load_state_dict(golden.state_dict)
    x = golden.input.requires_grad_()
    out = module(x.transpose(0, 1)).transpose(0, 1)
    (grad,) = torch.autograd.grad((out * normal(golden.meta["input_seed"] + 1, x.shape)).sum(), x)
    assert relative_error(out, golden.arrays["out_0"]) < 1e-5
    assert relative_error(grad, golden.arrays["grad_x"]) < 1e-5


OPTIONS = {
    "softmax": {"window": 3, "max_window": 3},
    "laplace": {"attn": "laplace", "window": 3},
    "relu2, whole map": {"attn": "relu2", "max_window": 2},
    "no gate": {"update_gate": False, "window": 2},
    "norm behind": {"prenorm": False, "norm": "scale"},
    "causal averages": {"bidirectional": False, "truncation": 3, "norm": "rms"},
    "raster": {"layout": "raster", "window": 6, "norm": "batch"},
    "rotary": {"layout": "raster", "rel_pos": "rotary", "attn": "laplace", "window": 4},
}


@pytest.mark.parametrize("size", [(5, 4), (1, 1), (2, 7)], ids=str)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_agrees_with_its_steps(options, size):
    torch.manual_seed(0)
    module = perturbed(MegaAttention(8, ndim=3, zdim=4, hdim=12, **options)).double().eval()
    x = torch.randn(2, *size, 8, dtype=torch.float64, requires_grad=True)
    weight, results = torch.randn_like(x), []
    for one in (module, naive_of(module)):
        out = one(x)
        results.append((out, *torch.autograd.grad(out, x, weight)))
    for ours, theirs in zip(*results, strict=True):
        assert relative_error(ours, theirs) < 1e-9


def test_moving_averages_reach_beyond_the_windows():
    torch.manual_seed(0)
    module = MegaAttention(8, window=2)
    x = torch.randn(1, 6, 6, 8, requires_grad=True)
    (reach,) = torch.autograd.grad(module(x)[0, 0, 0].sum(), x)
    seen = reach[0].abs().sum(-1) > 0
    assert seen[0].all() and seen[:, 0].all()  # its row and its column


def test_mirrors_with_the_map():
    """If both directions have the same averages and the bias does not know left from right."""
    torch.manual_seed(0)
    module = MegaAttention(8, ndim=3, window=3).double()
    with torch.no_grad():
        for average in (module.ema_h, module.ema_w):
            for parameter in average.parameters():
                parameter[8:] = parameter[:8]
        module.rel_bias.copy_(module.rel_bias + module.rel_bias.flip(0))
        module.rel_bias.copy_(module.rel_bias + module.rel_bias.flip(1))
    x = torch.randn(2, 6, 9, 8, dtype=torch.float64)
    for axis in (1, 2):
        torch.testing.assert_close(module(x.flip(axis)), module(x).flip(axis))


def test_an_open_gate_gives_the_candidate_and_a_closed_one_nothing():
    module = MegaAttention(8, window=2)
    x = torch.randn(1, 3, 3, 8)
    with torch.no_grad():
        module.mx_proj.weight[:8] = 0
        module.mx_proj.bias[:8] = -100
        assert (module(x) == 0).all()
        module.mx_proj.bias[:8] = 100
        plain = MegaAttention(8, window=2, update_gate=False)
        weights = module.state_dict()
        weights |= {f"mx_proj.{name}": weights[f"mx_proj.{name}"][8:] for name in ("weight", "bias")}
        plain.load_state_dict(weights)
        torch.testing.assert_close(x + module(x), plain(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"zdim": 0}, "zdim must be at least 1, got 0"),
        ({"attn": "linear"}, "attn must be one of softmax, laplace, relu2, got 'linear'"),
        ({"window": 0}, "window must be at least 1, got 0"),
        ({"max_window": 0}, "max_window must be at least 1, got 0"),
        ({"layout": "column"}, "layout must be one of grid, raster, got 'column'"),
        ({"rel_pos": "rotary"}, "rel_pos='rotary' needs layout='raster' and an even zdim, got 'grid'"),
        ({"norm": "group"}, "norm must be one of layer, scale, rms, batch, got 'group'"),
        ({"ndim": 0}, "ndim must be at least 1, got 0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        MegaAttention(8, **arguments)
