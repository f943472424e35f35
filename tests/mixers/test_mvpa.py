"""MVPA against the fixtures, of maps and of series, and against its formula."""

from functools import partial

import pytest
import torch

from visionattn.mixers import MVPAttention, SeriesMVPAttention, mvpa
from visionattn.ops.query_tiles import CACHED, in_tiles
from visionattn.reference.mvpa import naive_of
from visionattn.testing.contracts import perturbed
from visionattn.testing.fixtures import check_module, load, normal, relative_error


@pytest.fixture(params=[0, 200, CACHED, None], ids=["one", "some", "all", "features"], autouse=True)
def every_form(request, monkeypatch):
    """Some queries at a time, and what compilers get."""
    if request.param is None:
        monkeypatch.setattr(mvpa, "needs_formula", lambda: True)
    else:
        monkeypatch.setattr(mvpa, "in_tiles", partial(in_tiles, held=request.param, kept=0))


@pytest.mark.parametrize("name", ["mvpa_grid_2x5x7x32_eval", "mvpa_grid_1x6x9x32_clip_eval"])
def test_maps_agree_with_the_fixtures(name):
    golden = load(name)
    given = golden.meta["constructor"]
    module = MVPAttention(
        given["dim"],
        num_heads=given["heads"],
        num_kv_heads=given["kv_heads"],
        grid_size=given["grid"],
        window=given["window"],
        symmetric=given["symmetric"],
    )
    module.load_state_dict(golden.state_dict)
    assert sum(p.numel() for p in module.parameters()) == golden.meta["params"]
    check_module(module, golden, 1e-5)


@pytest.mark.parametrize("name", ["mvpa_1x13x3x32_g2_eval", "mvpa_2x5x4x32_g4_eval"])
def test_series_agree_with_the_official_code(name):
    golden = load(name)
    given = golden.meta["constructor"]
    module = SeriesMVPAttention(
        given["dim"], num_heads=given["heads"], num_kv_heads=given["kv_heads"], window=given["window"]
    )
    module.load_state_dict(golden.state_dict)
    x = golden.input.requires_grad_()
    out = module(x, golden.arrays["in_time_embed"], golden.arrays["in_channel_embed"])
    (out * normal(golden.meta["input_seed"] + 1, out.shape)).sum().backward()
    assert relative_error(out, golden.arrays["out_0"]) < 1e-5
    assert relative_error(x.grad, golden.arrays["grad_x"]) < 1e-5


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (5, 4)], ids=str)
@pytest.mark.parametrize(
    "given",
    [{}, {"num_kv_heads": 2}, {"window": 1}, {"symmetric": True, "num_kv_heads": 1}, {"window": 0, "symmetric": True}],
    ids=str,
)
def test_agrees_with_the_formula(size, given):
    """Also on maps larger than the tables."""
    torch.manual_seed(0)
    module = perturbed(MVPAttention(24, num_heads=4, grid_size=(3, 4), **given)).double()
    x = torch.randn(2, *size, 24, dtype=torch.float64, requires_grad=True)
    weight, results = torch.randn_like(x), []
    for one in (module, naive_of(module)):
        out = one(x)
        wanted = (x, *(one if one is module else one.module).parameters())
        results.append((out, *torch.autograd.grad(out, wanted, weight)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("window", [None, 1])
def test_weights_are_what_is_applied(window):
    torch.manual_seed(0)
    module = perturbed(MVPAttention(16, num_heads=4, num_kv_heads=2, grid_size=4, window=window)).double()
    x = torch.randn(2, 3, 4, 16).double()
    values = module.v(x.flatten(1, 2)).unflatten(-1, (2, 4)).transpose(1, 2).repeat_interleave(2, 1)
    mixed = (module.weights(x) @ values).transpose(1, 2).flatten(2)
    torch.testing.assert_close(module(x), module.proj(mixed).view(x.shape))


@pytest.mark.parametrize("window", [None, 1])
def test_extra_tokens_have_content_only(window):
    """They see the map as a set, and the map them; a bias is added."""
    torch.manual_seed(0)
    module = perturbed(MVPAttention(16, num_heads=2, grid_size=4, window=window)).double()
    tokens = torch.randn(2, 2 + 12, 16).double()
    order = torch.cat([torch.arange(2), 2 + torch.randperm(12)])
    out = module.forward_tokens(tokens, (3, 4), prefix=2)
    other = module.forward_tokens(tokens[:, order], (3, 4), prefix=2)
    torch.testing.assert_close(out[:, :2], other[:, :2])
    assert not torch.allclose(out[:, order], other)
    blind = torch.zeros(14, 14).double()
    blind[:, :2] = -torch.inf
    alone = module.forward_tokens(tokens, (3, 4), prefix=2, bias=blind)[:, 2:]
    torch.testing.assert_close(alone, module(tokens[:, 2:].unflatten(1, (3, 4))).flatten(1, 2))


def test_positions_alone_can_locate():
    """Far tokens are seen by position only: with strong scores of one offset each pixel copies its neighbour."""
    module = MVPAttention(8, num_heads=1, grid_size=4, window=0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        for layer in (module.v, module.proj, module.row_proj, module.col_proj):
            layer.weight.copy_(torch.eye(8))
        module.bias_row[0] = module.bias_col[0] = 1
        module.row_embed[3 - 2, 0] = module.col_embed[3, 0] = 100  # two rows up, the same column
    x = torch.randn(1, 4, 4, 8)
    torch.testing.assert_close(module(x)[:, 2:], x[:, :2])


def test_a_series_sees_no_future():
    torch.manual_seed(0)
    module = perturbed(SeriesMVPAttention(16, num_heads=2, window=1))
    x, times, channels = torch.randn(1, 6, 3, 16), torch.randn(1, 6, 16), torch.randn(1, 3, 16)
    before = module(x, times, channels)
    x[:, 4:] += 1
    after = module(x, times, channels)
    torch.testing.assert_close(after[:, :4], before[:, :4])
    assert not torch.allclose(after[:, 4], before[:, 4])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": 3}, "dim=8, num_heads=3"),
        ({"num_heads": 4, "num_kv_heads": 3}, "num_kv_heads must divide num_heads=4, got 3"),
        ({"num_heads": 4, "num_kv_heads": 0}, "num_kv_heads must be at least 1, got 0"),
        ({"grid_size": 0}, "grid_size must be one integer or two"),
        ({"window": -1}, "window must be at least 0 or None, got -1"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        MVPAttention(8, **arguments)


def test_bad_series():
    with pytest.raises(ValueError, match="window must be at least 0, got -1"):
        SeriesMVPAttention(8, window=-1)
    module, x = SeriesMVPAttention(8), torch.randn(1, 4, 3, 8)
    with pytest.raises(ValueError, match=r"time_embed must be \(1, 4, 8\) for this input, got \(1, 5, 8\)"):
        module(x, torch.randn(1, 5, 8), torch.randn(1, 3, 8))
    with pytest.raises(ValueError, match=r"channel_embed must be \(1, 3, 8\)"):
        module(x, torch.randn(1, 4, 8), torch.randn(1, 4, 8))
