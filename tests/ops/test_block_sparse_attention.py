"""Attention in groups of tokens, against each query with the very keys it may see, one by one."""

import pytest
import torch

from visionattn.ops import Windows, block_sparse_attention, window_attention

HEADS, DIM = 2, 4


def rows(batch, tokens):
    torch.manual_seed(0)
    return torch.randn(batch, tokens, 3, HEADS, DIM, dtype=torch.float64, requires_grad=True)


def one_by_one(qkv, groups, seen, bias, fill):
    """`groups`: the token in each slot, None for an empty one; `seen`: for a group the (group, slot) of its keys."""
    images = []
    for number, image in enumerate(qkv):
        out = [None] * len(image)
        for group, tokens in enumerate(groups):
            keys = seen(number, group)
            for slot, token in enumerate(tokens):
                if token is None:
                    continue
                heads = []
                for head in range(HEADS):
                    scores, values = [], []
                    for column, (other, place) in enumerate(keys):
                        key = groups[other][place]
                        if key is None and fill is None:
                            continue
                        k, v = image[key, 1:, head] if key is not None else fill[:, head]
                        scores.append(image[token, 0, head] @ k / DIM**0.5 + bias[head, slot, column])
                        values.append(v)
                    heads.append(torch.stack(scores).softmax(0) @ torch.stack(values))
                out[token] = torch.stack(heads)
        images.append(torch.stack(out))
    return torch.stack(images)


def compare(qkv, blocks, expected, leaves, **settings):
    out = block_sparse_attention(qkv, blocks, **settings)
    torch.testing.assert_close(out, expected)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    for pair in zip(*(torch.autograd.grad((o * weights).sum(), leaves) for o in (out, expected)), strict=True):
        torch.testing.assert_close(*pair)


def filled(table, tokens):
    return [[token if token < tokens else None for token in group] for group in table.tolist()]


def test_windows_with_padding_and_bias():
    qkv, windows = rows(2, 15), Windows((3, 5), (2, 3))
    bias = torch.randn(HEADS, 6, 6, dtype=torch.float64, requires_grad=True)
    fill = torch.randn(2, HEADS, DIM, dtype=torch.float64, requires_grad=True)
    groups = filled(windows.tokens(), 15)
    assert groups == [[0, 1, 2, 5, 6, 7], [3, 4, None, 8, 9, None], [10, 11, 12, *[None] * 3], [13, 14, *[None] * 4]]

    def own(image, group):
        return [(group, slot) for slot in range(6)]

    compare(qkv, windows, one_by_one(qkv, groups, own, bias, fill), (qkv, bias, fill), bias=bias, pad_kv=fill)
    compare(qkv, windows, one_by_one(qkv, groups, own, bias, None), (qkv, bias), bias=bias)


@pytest.mark.parametrize("mask_padding", [False, True])
def test_shifted_windows_are_those_of_window_attention(mask_padding):
    qkv, windows = rows(2, 35), Windows((7, 5), (4, 3), (1, 2))
    fill = None if mask_padding else torch.zeros(2, HEADS, DIM, dtype=torch.float64)
    expected = window_attention(
        qkv.flatten(2).unflatten(1, (7, 5)),
        lambda x: x,
        lambda x: x,
        num_heads=HEADS,
        window=(4, 3),
        shift=(1, 2),
        mask_padding=mask_padding,
    )
    compare(qkv, windows, expected.reshape(2, 35, HEADS, DIM), (qkv,), pad_kv=fill)


def test_block_table():
    qkv, windows = rows(2, 12), Windows((3, 4), (2, 2))
    table = torch.tensor([[[0, 3], [1, 0], [3, 2], [0, 1]], [[2, 1], [2, 0], [2, 3], [1, 2]]])
    bias = torch.randn(HEADS, 4, 8, dtype=torch.float64, requires_grad=True)

    def routed(image, group):
        return [(other, slot) for other in table[image, group].tolist() for slot in range(4)]

    expected = one_by_one(qkv, filled(windows.tokens(), 12), routed, bias, None)
    compare(qkv, windows, expected, (qkv, bias), block_table=table, bias=bias)


def test_tables_with_overlap():
    qkv, table = rows(2, 7), torch.tensor([[6, 0], [3, 1], [2, 5], [4, 9]])
    bias = torch.randn(HEADS, 2, 3, dtype=torch.float64, requires_grad=True)

    def siblings(image, group):
        own = [(group, 0), (group, 1)]
        return [(group - 1, 1), *own] if group % 2 else [*own, (group + 1, 0)]

    expected = one_by_one(qkv, filled(table, 7), siblings, bias, None)
    compare(qkv, table[None, None], expected, (qkv, bias), overlap=1, bias=bias)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qkv": torch.ones(1, 6, 3, 4)}, r"qkv must have shape \(B, N, 3, heads, d\), got \(1, 6, 3, 4\)"),
        ({"blocks": Windows((2, 2), (2, 2))}, "windows of a map of 2 x 2, but qkv has 6 tokens"),
        ({"blocks": Windows((2, 3), (2, 2), (0, 2))}, r"shift must be .* less than the window, got \(0, 2\)"),
        ({"blocks": torch.zeros(2, 3)}, r"blocks must have shape \(1, 2, blocks, n\), got \(2, 3\)"),
        ({"overlap": 1}, "overlap must be at most 4, for an even number of blocks of tokens, got 1"),
        (
            {"block_table": torch.zeros(1, 2, 1), "overlap": 1},
            "block_table goes neither with overlap nor with shifted windows",
        ),
        ({"bias": torch.ones(2, 4, 5)}, r"bias must have shape \(2, 4, 4\), got \(2, 4, 5\)"),
        ({"pad_kv": torch.ones(2, 4)}, r"pad_kv must have shape \(2, 2, 4\), for windows, got \(2, 4\)"),
    ],
)
def test_bad_arguments_are_named(change, message):
    arguments = {"qkv": rows(1, 6), "blocks": Windows((2, 3), (2, 2)), **change}
    with pytest.raises(ValueError, match=message):
        block_sparse_attention(arguments.pop("qkv"), arguments.pop("blocks"), **arguments)
