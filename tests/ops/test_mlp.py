"""The MLP by hand: what the plain formula gives, as a whole or by runs, to any derivative, and with less kept."""

from importlib import import_module

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from visionattn.models.layers import Branch, Mlp
from visionattn.ops import mlp

DIM, HIDDEN = 6, 10


@pytest.fixture(params=["whole", "runs"])
def length(request, monkeypatch):
    """As a whole, or 5 tokens at a time and a rest."""
    if request.param == "runs":
        module = import_module("visionattn.ops.mlp")
        for name, value in (("_WHOLE", 0), ("_RUN", 50), ("_TOKENS", 1)):
            monkeypatch.setattr(module, name, value)


def operands(shape=(2, 4, 3), norm=True):
    generator = torch.Generator().manual_seed(0)
    shapes = [(*shape, DIM), (HIDDEN, DIM), (HIDDEN,), (DIM, HIDDEN), (DIM,), *[(DIM,)] * (2 if norm else 0)]
    return [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]


def by_hand(residual):
    return lambda *x: mlp(*x[:5], norm=(*x[5:], 1e-3) if len(x) > 5 else None, residual=residual)


def literal(residual):
    def formula(x, up_weight, up_bias, down_weight, down_bias, *norm):
        y = F.layer_norm(x, (DIM,), *norm, 1e-3) if norm else x
        y = F.linear(F.gelu(F.linear(y, up_weight, up_bias)), down_weight, down_bias)
        return x + y if residual else y

    return formula


@pytest.mark.usefixtures("length")
@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("norm", [False, True], ids=["", "norm"])
@pytest.mark.parametrize("shape", [(2, 4, 3), (1,), (0, 2)], ids=str)
def test_values_and_gradients(shape, norm, residual):
    inputs = operands(shape, norm)
    out, expected = by_hand(residual)(*inputs), literal(residual)(*inputs)
    torch.testing.assert_close(out, expected)
    weight = torch.randn_like(out)
    for actual, wanted in zip(*(torch.autograd.grad(r, inputs, weight) for r in (out, expected)), strict=True):
        torch.testing.assert_close(actual, wanted)


@pytest.mark.usefixtures("length")
@pytest.mark.parametrize("norm", [False, True], ids=["", "norm"])
def test_derivatives_of_first_and_second_order(norm):
    inputs = operands(norm=norm)
    assert torch.autograd.gradcheck(by_hand(True), inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(by_hand(True), inputs, fast_mode=True)


@pytest.mark.usefixtures("length")
@pytest.mark.parametrize("alone", range(7))
def test_any_of_the_inputs_may_be_the_only_one_to_learn(alone):
    inputs = [tensor.detach() for tensor in operands()]
    inputs[alone].requires_grad_()
    grads = [torch.autograd.grad(f(True)(*inputs).square().sum(), inputs[alone]) for f in (by_hand, literal)]
    torch.testing.assert_close(*grads)


def test_any_strides():
    x, *rest = operands()
    strided = x.detach().permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0).requires_grad_()
    out = by_hand(True)(strided, *rest)
    torch.testing.assert_close(out, literal(True)(x, *rest))
    # The gradient of a sum has no memory of its own for each number.
    torch.testing.assert_close(
        torch.autograd.grad(out.sum(), strided), torch.autograd.grad(literal(True)(x, *rest).sum(), x)
    )


def test_works_under_function_transforms():
    x, *rest = (tensor.detach() for tensor in operands())
    each = [
        torch.func.vmap(torch.func.grad(lambda x, f=f: f(True)(x, *rest).square().sum()))(x) for f in (by_hand, literal)
    ]
    torch.testing.assert_close(*each)


def test_autocast_is_heeded():
    inputs = [tensor.detach().float() for tensor in operands()]
    with torch.autocast("cpu", torch.bfloat16):
        assert by_hand(False)(*inputs).dtype == literal(False)(*inputs).dtype == torch.bfloat16


def kept(function, *inputs):
    """Numbers that are kept for the backward pass, of the inputs or not."""
    storages = {}

    def note(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = function(*inputs)
    assert out.requires_grad
    return sum(storages.values())


def test_keeps_the_tokens_and_one_hidden_map():
    inputs = operands((50,))
    parameters = sum(tensor.numel() for tensor in inputs[1:])
    assert kept(by_hand(True), *inputs) == 50 * (DIM + HIDDEN) + parameters + 2 * 50  # mean and deviation of the norm
    assert kept(literal(True), *inputs) >= 50 * (2 * DIM + 2 * HIDDEN)


def block(**kwargs):
    torch.manual_seed(0)
    return Branch(DIM, Mlp(DIM, drop=kwargs.pop("drop", 0.0)), **kwargs)


@pytest.mark.parametrize("training", [False, True], ids=["", "training"])
@pytest.mark.parametrize("kwargs", [{}, {"layer_scale": 0.5}, {"drop_path": 0.5}, {"drop": 0.5}], ids=str)
def test_branches_are_the_same_with_hooks_which_hear_each_layer(kwargs, training):
    branch, x = block(**kwargs).train(training), torch.randn(3, 2, 2, DIM)
    torch.manual_seed(1)
    expected = branch(x)
    heard = []
    for name in ("norm", "fn", "fn.fc1", "fn.fc2"):
        branch.get_submodule(name).register_forward_hook(lambda layer, args, out, name=name: heard.append((name, args)))
    torch.manual_seed(1)
    torch.testing.assert_close(branch(x), expected)
    inputs = dict(heard)
    assert list(inputs) == ["norm", "fn.fc1", "fn.fc2", "fn"]
    torch.testing.assert_close(inputs["fn"][0], F.layer_norm(x, (DIM,)))


@pytest.mark.parametrize("name", ["norm", "fn", "fn.fc1", "fn.fc2"])
def test_a_single_hook_hears_its_layer(name):
    branch, x, heard = block(), torch.randn(3, 2, 2, DIM), []
    expected = branch(x)
    branch.get_submodule(name).register_forward_pre_hook(lambda layer, args: heard.append(args[0].shape))
    torch.testing.assert_close(branch(x), expected)
    assert len(heard) == 1


def test_layers_of_other_kinds_are_called():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    branch, x = block(), torch.randn(3, 2, 2, DIM)
    expected = x + 2 * (branch(x) - x)
    doubled = Doubled(4 * DIM, DIM)
    doubled.load_state_dict(branch.fn.fc2.state_dict())
    branch.fn.fc2 = doubled
    torch.testing.assert_close(branch(x), expected)
    torch.nn.utils.parametrizations.weight_norm(branch.fn.fc1)  # makes a class of its own
    torch.testing.assert_close(branch(x), expected)
    bare = Branch(DIM, Mlp(DIM), norm=lambda dim, **dd: nn.LayerNorm(dim, elementwise_affine=False))
    torch.testing.assert_close(bare(x), x + bare.fn(F.layer_norm(x, (DIM,))))
