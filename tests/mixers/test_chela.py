"""CHELA against the recorded outputs and gradients of a literal implementation, and its kernels that make one."""

import pytest
import timm
import torch

from visionattn.mixers import CHELA
from visionattn.reference.chela import naive_of
from visionattn.testing.contracts import perturbed
from visionattn.testing.fixtures import load, normal, relative_error


@pytest.mark.parametrize("fused", [False, True])
def test_golden(fused):
    golden = load("chela_2x5x7x24_eval")
    made = dict(golden.meta["constructor"])
    module = CHELA(made.pop("dim"), **made)
    module.load_state_dict(golden.state_dict)
    if fused:
        assert module.fuse() is module and "short.weight" not in module.state_dict()
    x = golden.input.requires_grad_()
    out = x + module(x)
    (grad,) = torch.autograd.grad((out * normal(golden.meta["input_seed"] + 1, x.shape)).sum(), x)
    assert relative_error(out, golden.arrays["out_0"]) < 1e-5
    assert relative_error(grad, golden.arrays["grad_x"]) < 1e-5


OPTIONS = {
    "both": {},
    "short only": {"long": None},
    "long only": {"short": None, "long": 7},
    "none": {"short": None, "long": None},
    "short is longer": {"short": 5, "long": 3},
    "strip": {"strip": True, "long": 5},
    "no gate": {"update_gate": False},
}


@pytest.mark.parametrize("size", [(5, 4), (1, 1), (2, 7), (20, 17)], ids=str)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_agrees_with_its_steps(options, size):
    torch.manual_seed(0)
    module = perturbed(CHELA(8, zdim=4, hdim=12, **options)).double()
    x = torch.randn(2, *size, 8, dtype=torch.float64, requires_grad=True)
    weight, results = torch.randn_like(x), []
    for one in (module, naive_of(module)):
        out = one(x)
        results.append((out, *torch.autograd.grad(out, x, weight)))
    for ours, theirs in zip(*results, strict=True):
        assert relative_error(ours, theirs) < 1e-9


@pytest.mark.parametrize("sides", [(3, 13), (5, 3), (3, 3)], ids=str)
def test_fused_kernels_give_the_same(sides):
    torch.manual_seed(0)
    module = perturbed(CHELA(8, short=sides[0], long=sides[1])).eval()
    x = torch.randn(2, 9, 6, 8)
    expected = module(x)
    parameters = sum(p.numel() for p in module.parameters())
    assert relative_error(module.fuse()(x), expected) < 1e-5
    assert sum(p.numel() for p in module.parameters()) == parameters - 8 * min(sides) ** 2
    with pytest.raises(ValueError, match="only a short and a square long kernel make one"):
        module.fuse()


@pytest.mark.parametrize("options", [{"strip": True}, {"long": None}, {"short": None}], ids=str)
def test_what_cannot_be_fused_says_so(options):
    with pytest.raises(ValueError, match="only a short and a square long kernel make one"):
        CHELA(8, **options).fuse()


def test_weights_are_what_is_applied():
    torch.manual_seed(0)
    module = perturbed(CHELA(8)).double()
    x = torch.randn(2, 3, 4, 8, dtype=torch.float64)
    q, k = module.queries_keys(x)
    v = torch.randn(2, 3, 4, 16, dtype=torch.float64)
    rows = module.weights(x)
    assert rows.shape == (2, 1, 12, 12)
    torch.testing.assert_close(module.attn_norm(rows[:, 0] @ v.flatten(1, 2)), module.read(q, k, v).flatten(1, 2))


def test_starts_with_the_map_itself_in_the_short_kernel():
    """In a host too, which gives convolutions a start of their own."""
    for module in (CHELA(64), timm.create_model("va_stm_chela_nano").stages[0].blocks[0].attn.fn):
        centre = module.short.weight[:, 0, 1, 1]
        assert (centre - 1).abs().max() < 0.1 and module.long.weight.abs().max() < 0.1
        assert 0.01 < module.long.weight.std() < 0.03


def test_mirrors_with_the_map_if_its_kernels_do():
    torch.manual_seed(0)
    module = CHELA(8).double()
    with torch.no_grad():
        for kernel in (module.short.weight, module.long.weight):
            kernel.copy_(kernel + kernel.flip(3))
    x = torch.randn(2, 6, 9, 8, dtype=torch.float64)
    torch.testing.assert_close(module(x.flip(2)), module(x).flip(2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hdim": 0}, "hdim must be at least 1, got 0"),
        ({"short": 4}, "short must be a positive odd number, got 4"),
        ({"long": 0}, "long must be a positive odd number, got 0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        CHELA(8, **arguments)
