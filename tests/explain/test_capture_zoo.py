"""Capture over the whole zoo and many families of timm's: nothing changes, and what is seen is what was computed."""

import contextlib

import pytest
import timm
import torch
from explained import MORE, fill
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from visionattn import explain

# Parts of the names of networks of ours that may have no softmax of a product: linear and other unnormalised attention,
# convolutions, scans, gates of CNNs, scores made by an MLP; and attention that takes small maps in another way.
WITHOUT = (
    *(
        "net",
        "balanced",
        "next",
        "lkca",
        "pool",
        "linear",
        "flatten",
        "rala",
        "regla",
        "titans",
        "chela",
        "fastmax",
        "feat_wkv",
    ),
    *("scatterbrain", "neural", "vit_deconstructed", "uniform", "mlp_", "relu", "self_gate"),
)


class FusedResults(TorchFunctionMode):
    """Notes what fused attention gives; entered before `capture`, so it sees what capture itself calls."""

    last = None

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        if func is F.scaled_dot_product_attention:
            self.last = out
        return out


def worst_product(model, x):
    """The output with every attention captured, and how far `probs @ v` is from what the network computed, at most.

    That is the result of the fused call, or the network's own product behind a softmax. The second is relative to each
    attention's largest output; nothing where heads are mixed between the probabilities and the values.
    """
    with FusedResults() as fused:

        def error(layer):
            result, fused.last = fused.last, None
            if not {"v", "out"} <= layer.raw.keys():
                return None
            computed = layer.out if result is None else layer.layout.apply(result)
            again = layer.probs.to(layer.v.dtype) @ layer.v
            return ((again - computed).abs().max() / computed.abs().max()).item()

        with explain.capture(model, reduce=error) as record:
            out = model(x)
    return out, [layer.reduced for layer in record]


def check(name, side):
    """Bit for bit the same without gradients, with them and under autocast; the number of attentions."""
    model = fill(timm.create_model(name, num_classes=10))
    x = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    first = next(parameter for parameter in model.parameters() if parameter.requires_grad)
    for precise in (True, False):
        with contextlib.nullcontext() if precise else torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                plain = model(x)
                captured, errors = worst_product(model, x)
                assert torch.equal(captured, plain)
            known = [error for error in errors if error is not None]
            assert errors and max(known, default=0) < (1e-4 if precise else 0.05), errors
            graded = model(x)
            slope = torch.autograd.grad(graded[:, 3].sum(), first)[0]
            with explain.capture(model, keep=("probs",)) as record:
                captured = model(x)
            assert torch.equal(captured, graded) and len(record) == len(errors)
            record.gradients(captured[:, 3].sum())
            # What is chosen without gradients, such as blocks of keys, has none.
            assert all(layer.grad.isfinite().all() for layer in record if layer.raw["probs"].requires_grad)
            again = torch.autograd.grad(captured[:, 3].sum(), first)[0]
            assert (again - slope).abs().max() <= (1e-3 if precise else 0.1) * slope.abs().max()
    return len(errors), len(known)


def check_forward_mode(name, side):
    """In float64, but of networks that would take 10 GB so."""
    model = fill(timm.create_model(name, num_classes=10)).requires_grad_(False)
    double = sum(parameter.numel() for parameter in model.parameters()) < 1e9
    model = model.double() if double else model
    generator = torch.Generator().manual_seed(0)
    kind = torch.float64 if double else torch.float32
    x, tangent = (torch.randn(1, 3, side, side, generator=generator, dtype=kind) for _ in range(2))
    leaf = x.clone().requires_grad_()
    logits = model(leaf)
    slope = torch.autograd.grad(logits.square().sum(), leaf)[0]
    value, forward = torch.func.jvp(model, (x,), (tangent,))
    tolerance = 1e-6 if double else 1e-3
    assert (value - logits).abs().max() <= tolerance * logits.abs().max()
    expected = (slope * tangent).sum()
    assert ((2 * value * forward).sum() - expected).abs() <= 1e2 * tolerance * (slope * tangent).abs().sum()


@pytest.mark.slow
@pytest.mark.parametrize("name", timm.list_models("va_*"))
def test_every_network_of_ours(name):
    try:
        check(name, min(timm.get_pretrained_cfg(name).input_size[1], 64))
    except ValueError as error:
        assert "has no attention that makes probabilities" in str(error) and any(part in name for part in WITHOUT)


@pytest.mark.slow
@pytest.mark.parametrize("name", timm.list_models("va_*"))
def test_forward_mode_of_every_network_of_ours(name):
    """What traces positions: `torch.func.jvp` gives the derivative that gradients give."""
    check_forward_mode(name, min(timm.get_pretrained_cfg(name).input_size[1], 64))


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_more_of_timm(name):
    try:
        check(name, timm.get_pretrained_cfg(name).input_size[-1])
    except ValueError as error:
        assert "no attention" in str(error) and name in ("efficientvit_m0", "repvit_m0_9")
