"""SimAM against its formula."""

import pytest
import torch

from visionattn.plugins import SimAM
from visionattn.reference.simam import naive_of
from visionattn.testing.fixtures import relative_error


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (5, 1), (6, 7)], ids=str)
@pytest.mark.parametrize("e_lambda", [1e-4, 0.1])
def test_agrees_with_the_energies(size, e_lambda):
    torch.manual_seed(0)
    module = SimAM(3, e_lambda=e_lambda)
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    weight, results = torch.randn_like(x), []
    for one in (module, naive_of(module)):
        leaf = x.clone().requires_grad_()
        out = one(leaf)
        results.append((out, *torch.autograd.grad(out, leaf, weight)))
    for actual, expected in zip(*results, strict=True):
        assert relative_error(actual, expected) < 1e-9


def test_two_values_by_hand():
    # Means 2 and 0: squares are 1 and 0, the unbiased variances 2 and 0.
    x = torch.tensor([[[[1.0, 3.0]], [[0.0, 0.0]]]])
    gate = torch.tensor(1 / (4 * 2.1) + 0.5).sigmoid()
    torch.testing.assert_close(SimAM(2, e_lambda=0.1)(x), torch.stack((x[:, 0] * gate, x[:, 1]), dim=1))


@pytest.mark.parametrize("x", [torch.full((2, 3, 1, 1), 4.0), torch.full((1, 2, 5, 4), -7.0)], ids=["single", "equal"])
def test_equal_values_are_scaled_alike(x):
    torch.testing.assert_close(SimAM(x.shape[1])(x), x * torch.tensor(0.5).sigmoid())


def test_has_no_state():
    module = SimAM(8)
    assert not module.state_dict() and not [*module.parameters()] and str(module) == "SimAM(e_lambda=0.0001)"
    assert module.gates(torch.randn(2, 8, 3, 4))["neurons"].shape == (2, 8, 3, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": 0}, "channels must be at least 1, got 0"),
        ({"channels": 8, "e_lambda": 0.0}, r"e_lambda must be above 0, got 0\.0"),
        ({"channels": 8, "e_lambda": float("nan")}, "e_lambda must be above 0, got nan"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        SimAM(**arguments)
