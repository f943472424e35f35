"""Linear attention against its formula and the dense matrix it stands for."""

import pytest
import torch

from visionattn.mixers import LinearAttention
from visionattn.reference.linear import naive_of
from visionattn.testing.contracts import perturbed
from visionattn.testing.fixtures import relative_error


def dense(module):
    def forward(x):
        values = module.qkv(x.flatten(1, 2)).chunk(3, dim=-1)[2].unflatten(-1, (module.num_heads, -1)).transpose(1, 2)
        return module.proj((module.weights(x) @ values).transpose(1, 2).flatten(2)).view(x.shape)

    return forward


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (4, 3)], ids=str)
@pytest.mark.parametrize("expected", [naive_of, dense])
def test_agrees_with_the_formula(size, expected):
    torch.manual_seed(0)
    module = perturbed(LinearAttention(12, num_heads=3, eps=0.1)).double()
    x = torch.randn(2, *size, 12, dtype=torch.float64, requires_grad=True)
    weight, results = torch.randn_like(x), []
    for one in (module, expected(module)):
        out = one(x)
        results.append((out, *torch.autograd.grad(out, x, weight)))
    for ours, theirs in zip(*results, strict=True):
        assert relative_error(ours, theirs) < 1e-9


def test_weights_are_positive_and_sum_to_one():
    rows = LinearAttention(8, num_heads=2).weights(torch.randn(2, 3, 4, 8))
    assert rows.shape == (2, 2, 12, 12) and (rows > 0).all()
    torch.testing.assert_close(rows.sum(-1), torch.ones(2, 2, 12))


def test_extra_tokens_take_part():
    module = LinearAttention(8, num_heads=2)
    tokens = torch.randn(2, 1 + 6, 8)
    out, without = module.forward_tokens(tokens, (2, 3), prefix=1), module.forward_tokens(tokens[:, 1:], (2, 3))
    assert out.shape == tokens.shape and not torch.allclose(out[:, 1:], without)
    torch.testing.assert_close(without, module(tokens[:, 1:].unflatten(1, (2, 3))).flatten(1, 2))


def test_large_maps_stay_within_half_precision():
    module = LinearAttention(8, num_heads=1).half()
    with torch.no_grad():
        module.qkv.weight.zero_()
        module.qkv.bias.copy_(torch.cat((torch.full((16,), 10.0), torch.full((8,), 5.0))))
    x = torch.zeros(1, 128, 128, 8, dtype=torch.half)  # 16,384 keys of 11 and values of 5 sum up to 901,120
    torch.testing.assert_close(module(x)[0, 0, 0], module.proj(torch.full((8,), 5.0).half()), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 8, "num_heads": 3}, "dim=8, num_heads=3"),
        ({"dim": 8, "eps": -1.0}, r"eps must be at least 0, got -1\.0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        LinearAttention(**arguments)
