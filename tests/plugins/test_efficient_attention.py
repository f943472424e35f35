"""Efficient attention against the official code's recorded outputs and gradients, and against dense attention."""

import pytest
import torch

from visionattn.plugins import EfficientAttention
from visionattn.reference.efficient_attention import naive_of
from visionattn.testing.fixtures import check_module, load, relative_error

FIXTURES = [
    "efficientattention_module_1x48x17x9_k16_h4_v32_eval",
    "efficientattention_module_1x48x17x9_k24_h2_v48_eval",
]


@pytest.fixture(autouse=True, params=[True, False], ids=["small maps fold, too", "as chosen"])
def small_maps_fold(request, monkeypatch):
    if request.param:
        monkeypatch.setattr("visionattn.plugins.efficient_attention._WORTHWHILE", 0)
    return request.param


@pytest.mark.parametrize("name", FIXTURES)
def test_golden(name):
    golden = load(name)
    given = golden.meta["constructor"]
    widths = {"key_channels": given["key_channels"], "value_channels": given["value_channels"]}
    module = EfficientAttention(given["channels"], head_count=given["heads"], **widths)
    module.load_state_dict(golden.state_dict)
    assert sum(p.numel() for p in module.parameters()) == golden.meta["params"]
    check_module(module, golden, 1e-5)


@pytest.mark.parametrize("normalization", ["softmax", "scaling"])
@pytest.mark.parametrize(("heads", "residual"), [(1, True), (4, False)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("size", [(7, 5), (1, 2)], ids=["folded", "unfolded"])
def test_all_gradients_are_those_of_the_steps(normalization, heads, residual, layout, size, small_maps_fold):
    torch.manual_seed(0)
    arguments = {"head_count": heads, "residual": residual, "normalization": normalization, "value_channels": 12}
    module = EfficientAttention(20, key_channels=8, **arguments).double()
    naive = naive_of(module)
    x = torch.randn(3, 20, *size, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    assert module._folds(x.flatten(2), 1) == (small_maps_fold and size == (7, 5))
    out, expected = module(x), naive(x)
    assert out.is_contiguous(memory_format=layout)
    weight = torch.randn_like(out)
    ours = torch.autograd.grad(out, (x, *module.parameters()), weight)
    theirs = torch.autograd.grad(expected, (x, *naive.parameters()), weight)
    for actual, wanted in zip((out, *ours), (expected, *theirs), strict=True):
        # What goes round a softmax leaves some biases without a gradient.
        torch.testing.assert_close(actual, wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("normalization", ["softmax", "scaling"])
def test_is_attention_with_a_dense_matrix(normalization):
    """With `scaling` it is the non-local block's dot product, with `softmax` the rows of the matrix add up to 1."""
    torch.manual_seed(0)
    module = EfficientAttention(12, normalization=normalization, residual=False).double()
    x = torch.randn(2, 12, 5, 6, dtype=torch.float64)
    q, k, v = (layer(x).flatten(2).mT for layer in (module.queries, module.keys, module.values))
    dense = q @ k.mT / 30 if normalization == "scaling" else q.softmax(2) @ k.softmax(1).mT
    if normalization == "softmax":
        torch.testing.assert_close(dense.sum(2), torch.ones(2, 30, dtype=torch.float64))
    expected = module.reprojection((dense @ v).mT.unflatten(2, (5, 6)))
    torch.testing.assert_close(module(x), expected, rtol=1e-10, atol=1e-12)


def test_key_channels_are_maps_of_the_picture():
    module = EfficientAttention(16, key_channels=6)
    for x in (torch.randn(2, 16, 5, 4), torch.randn(2, 16, 5, 4).contiguous(memory_format=torch.channels_last)):
        maps = module.attention(x)
        assert maps.shape == (2, 6, 5, 4) and (maps > 0).all()
        torch.testing.assert_close(maps.sum((2, 3)), torch.ones(2, 6))
        torch.testing.assert_close(maps, module.keys(x).flatten(2).softmax(2).view(2, 6, 5, 4))


def test_starts():
    module, x = EfficientAttention(16, zero_init_last=True), torch.randn(2, 16, 6, 6)
    assert torch.equal(module(x), x)
    assert module.reprojection.weight.grad_fn is None and module.keys.weight.any()
    assert not torch.equal(EfficientAttention(16)(x), x)


def test_widths():
    widths = {"keys": 32, "queries": 32, "values": 32, "reprojection": 64}
    assert {name: layer.out_channels for name, layer in EfficientAttention(64).named_children()} == widths
    assert EfficientAttention(10, head_count=4).keys.out_channels == 4
    assert EfficientAttention(3, head_count=8).keys.out_channels == 8


def test_no_matrix_of_all_positions():
    """A map of 65536 positions, whose dense matrix would take 16 GiB."""
    x = torch.randn(1, 4, 256, 256)
    assert relative_error(EfficientAttention(4)(x), x) < 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": 0}, "channels must be at least 1, got 0"),
        ({"channels": 8, "head_count": 0}, "head_count must be at least 1, got 0"),
        ({"channels": 8, "key_channels": 0}, "key_channels must be at least 1, got 0"),
        ({"channels": 8, "value_channels": -1}, "value_channels must be at least 1, got -1"),
        (
            {"channels": 8, "key_channels": 6, "head_count": 4},
            "head_count must divide .* got head_count=4, key_channels=6",
        ),
        ({"channels": 8, "head_count": 4, "value_channels": 6}, "must divide .* key_channels=4, value_channels=6"),
        ({"channels": 8, "normalization": "none"}, "normalization must be one of softmax, scaling, got 'none'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        EfficientAttention(**arguments)
