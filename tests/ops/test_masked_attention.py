"""Attention over a map of blocks: its ways of skipping pairs against the mask of all pairs, outputs and gradients."""

import pytest
import torch

from visionattn.ops import Blocks, masked_attention, pair_mask
from visionattn.ops.flex_masks import flex_masked_attention, sorted_mask
from visionattn.profiling.peak_memory import peak_bytes
from visionattn.testing.fixtures import relative_error

GRID = (9, 10)


def _inputs(prefix, dtype=torch.float64):
    torch.manual_seed(0)
    return [torch.randn(2, 3, prefix + 90, 8, dtype=dtype, requires_grad=True) for _ in range(3)]


def _dense(q, k, v, mask):
    scores = (q @ k.mT * q.size(-1) ** -0.5).masked_fill(~mask, float("-inf"))
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def _blocks(kind):
    return {"rows": Blocks.rows(90, 16), "tiles": Blocks.tiles(GRID, (2, 4)), "tokens": None}[kind]


@pytest.fixture
def skipping(monkeypatch):
    """Lets small maps skip pairs, and says how often."""
    import sys

    module = sys.modules["visionattn.ops.masked_attention"]
    calls = []
    monkeypatch.setattr(module, "_FEWEST", 1)
    monkeypatch.setattr(module, "_TALL", 2)
    for name in ("_gather_keys", "_gather_queries"):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, real=real, name=name: calls.append(name) or real(*a))
    return calls


@pytest.mark.parametrize("prefix", [0, 2])
@pytest.mark.parametrize("keys", ["rows", "tiles"])
@pytest.mark.parametrize("queries", ["rows", "rows, one sees all", "tiles", "tokens"])
def test_skipped_pairs_do_not_matter(queries, keys, prefix, skipping):
    inputs = _inputs(prefix)
    one, other = _blocks(queries.partition(",")[0]), _blocks(keys)
    rows = 90 if one is None else one.tokens.size(0)
    number = (torch.arange(rows) * 7 + torch.arange(6).view(2, 3, 1)) % other.tokens.size(0)
    seen = number.unsqueeze(-1) == torch.arange(other.tokens.size(0))
    if queries.endswith("sees all"):
        seen[1, 2, 3] = True
    weight = torch.randn(2, prefix + 90, 24, dtype=torch.float64)
    results = []
    for out in (
        masked_attention(*inputs, seen, queries=one, keys=other, prefix=prefix),
        _dense(*inputs, pair_mask(seen, one, other, prefix)),
    ):
        results.append((out, *torch.autograd.grad(out, inputs, weight)))
    assert skipping == ["_gather_queries" if one is None else "_gather_keys"]
    for ours, theirs in zip(*results, strict=True):
        assert relative_error(ours, theirs) < 1e-10
    with torch.no_grad():  # piece by piece
        out = masked_attention(*inputs, seen, queries=one, keys=other, prefix=prefix)
    assert relative_error(out, results[1][0]) < 1e-10


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("prefix", [0, 2])
@pytest.mark.parametrize("keys", ["rows", "tiles", "tokens"])
@pytest.mark.parametrize("queries", ["rows", "tiles", "tokens"])
def test_flex_attention_sees_the_same_pairs(queries, keys, prefix, shared):
    torch.manual_seed(0)
    inputs = [torch.randn(2, 3, prefix + 90, 16) for _ in range(3)]
    one, other = _blocks(queries), _blocks(keys)
    rows, columns = (90 if blocks is None else blocks.tokens.size(0) for blocks in (one, other))
    seen = torch.rand(1 if shared else 2, 1 if shared else 3, rows, columns) < 0.3
    seen[..., 0] = True
    out = flex_masked_attention(*inputs, seen, queries=one, keys=other, prefix=prefix)
    assert relative_error(out, masked_attention(*inputs, seen, queries=one, keys=other, prefix=prefix)) < 1e-5


def test_flex_attention_gets_tokens_in_an_order_that_skips_pairs():
    """Tiles that see themselves alone: by rows of the map every run of 128 tokens has pairs that are seen."""
    tiles = Blocks.tiles((32, 32), (16, 8))
    q, seen = torch.randn(1, 1, 1024, 16), torch.eye(8, dtype=torch.bool).view(1, 1, 8, 8)
    order, places, mask = sorted_mask(q, seen, tiles, tiles, 0)
    assert torch.equal(order, places) and torch.equal(order.sort().values, torch.arange(1024))
    assert mask.sparsity() == pytest.approx(100 * 7 / 8)
    rows = Blocks.rows(1024, 1)
    assert sorted_mask(q, pair_mask(seen, tiles, tiles), rows, rows, 0)[2].sparsity() == pytest.approx(50)


@pytest.mark.parametrize(("queries", "keys"), [(32, 16), (None, 112)])
def test_inference_holds_no_copies_of_all_pairs(queries, keys):
    """A quarter of the pairs is seen; the last block of queries is not full and sees everything."""
    tokens, dim = 1584, 8
    q, k, v = torch.randn(3, 1, 2, tokens, dim).unbind(0)
    one = None if queries is None else Blocks.rows(tokens, queries)
    other = Blocks.rows(tokens, keys)
    rows, columns = tokens if one is None else one.tokens.size(0), other.tokens.size(0)
    seen = torch.arange(rows)[:, None] % 5 == torch.arange(columns) % 5
    if one is not None:
        seen[-1] = True
    with torch.no_grad():
        held = peak_bytes(lambda: masked_attention(q, k, v, seen[None, None], queries=one, keys=other))
        out = masked_attention(q, k, v, seen[None, None], queries=one, keys=other)
        assert relative_error(out, _dense(q, k, v, pair_mask(seen[None, None], one, other))) < 1e-5
    assert held < 0.4 * 4 * tokens**2  # all pairs of one head in float32


@pytest.mark.parametrize("empty_row", [False, True])
def test_rows_that_see_nothing(empty_row):
    inputs = _inputs(0)
    seen = torch.rand(1, 1, 90, 90) < 0.5
    if empty_row:
        seen[0, 0, 5] = False
        with pytest.raises(ValueError, match="leaves 1 rows empty, the first is row 5 of head 0 of image 0"):
            masked_attention(*inputs, seen)
    out = masked_attention(*inputs, seen, empty="zero")
    assert (out[:, 5] == 0).all() == empty_row
    expected = _dense(*inputs, seen).nan_to_num()
    assert relative_error(out, expected) < 1e-10
    assert all(g.isfinite().all() for g in torch.autograd.grad(out.sum(), inputs))


def test_a_bias_counts_among_the_keys_that_are_seen():
    q, k, v = _inputs(1)
    seen, bias = torch.rand(2, 3, 90, 12) < 0.5, torch.randn(3, 91, 91, dtype=torch.float64)
    keys = Blocks.tiles(GRID, (3, 3))
    out = masked_attention(q, k, v, seen, keys=keys, prefix=1, bias=bias)
    scores = (q @ k.mT * 8**-0.5 + bias).masked_fill(~pair_mask(seen, None, keys, 1), float("-inf"))
    assert relative_error(out, (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)) < 1e-10


@pytest.mark.parametrize(
    ("seen", "settings", "message"),
    [
        (torch.ones(2, 3, 90, 90), {}, r"seen must be bool of shape \(2, 3, 90, 90\), got torch.float32"),
        (torch.ones(2, 3, 90, 9, dtype=torch.bool), {}, r"seen must be .*, got torch.bool of \(2, 3, 90, 9\)"),
        (torch.ones(1, 1, 90, 90, dtype=torch.bool), {"empty": "nan"}, "empty must be raise or zero, got 'nan'"),
    ],
)
def test_bad_arguments(seen, settings, message):
    with pytest.raises(ValueError, match=message):
        masked_attention(*_inputs(0), seen, **settings)
