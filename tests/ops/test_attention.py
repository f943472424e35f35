"""Softmax attention in every arrangement of tokens, where the scores are large: PyTorch's fused CPU form is wrong."""

import pytest
import torch
from torch.nn import functional as F

from visionattn.ops import (
    Windows,
    attention,
    block_sparse_attention,
    cluster_attention,
    halo_attention,
    stripe_attention,
    window_attention,
)

HEADS, DIM, SIDE = 2, 16, 8


def separate(x):
    return x.flatten(1, 2).unflatten(-1, (3, HEADS, DIM)).permute(2, 0, 3, 1, 4).unbind(0)


def together(x):
    return x.flatten(1, 2).unflatten(-1, (3, HEADS, DIM))


# Of a map of queries, keys and values, (B, H, W, 3 * heads * d).
ARRANGEMENTS = {
    "attention": lambda x: attention(*separate(x)),
    "attention, masked": lambda x: attention(*separate(x), mask=torch.ones(64, 64, dtype=torch.bool).tril()),
    "attention, biased": lambda x: attention(*separate(x), mask=torch.ones(64, 64, dtype=x.dtype).triu()),
    "stripes": lambda x: stripe_attention(
        x.unflatten(-1, (3, -1)), torch.ones(HEADS * DIM, 1, 3, 3, dtype=x.dtype), num_heads=HEADS, stripe=(None, 2)
    ),
    "windows": lambda x: window_attention(x, None, None, num_heads=HEADS, window=(4, 4)),
    "blocks": lambda x: block_sparse_attention(together(x), Windows((SIDE, SIDE), (3, 3), (1, 1))),
    "clusters": lambda x: cluster_attention(
        together(x), torch.arange(64).view(1, 1, 4, 16).expand(2, HEADS, -1, -1), overlap=5
    )[0],
    "halos": lambda x: halo_attention(
        *x.unflatten(-1, (3, HEADS, DIM)).unbind(3), *torch.ones(2, 15, DIM, dtype=x.dtype), block_size=4, halo_size=2
    ),
}


@pytest.mark.parametrize("size", [1, 1e3, 1e4])
@pytest.mark.parametrize("name", ARRANGEMENTS)
def test_gradients_at_any_size_of_the_input(name, size):
    x = size * torch.randn(2, SIDE, SIDE, 3 * HEADS * DIM, generator=torch.Generator().manual_seed(1))
    results = []
    for dtype in (torch.float32, torch.float64):
        leaf = x.to(dtype, copy=True).requires_grad_()
        out = ARRANGEMENTS[name](leaf)
        (grad,) = torch.autograd.grad((out * torch.linspace(0, 1, out.numel()).view_as(out)).sum(), leaf)
        assert out.dtype == grad.dtype == dtype
        results.append((out.double(), grad.double()))
    for actual, expected in zip(*results, strict=True):
        assert (actual - expected).norm() < 1e-5 * expected.norm()


def test_scores_of_half_precision_are_finite():
    q, k, v = (3e4 * torch.randn(1, 1, 9, 8).bfloat16() for _ in range(3))
    q.requires_grad_()
    out = attention(q, k, v)
    assert out.dtype == torch.bfloat16 and out.isfinite().all()
    assert torch.autograd.grad(out.sum(), q)[0].isfinite().all()


@pytest.mark.parametrize("learns", [False, True])
def test_is_softmax_attention(learns):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, HEADS, n, DIM, dtype=torch.float64, requires_grad=True) for n in (5, 7, 7))
    bias = torch.randn(1, HEADS, 5, 7, dtype=torch.float64, requires_grad=learns)
    out = attention(q, k, v, mask=bias, scale=0.3)
    expected = (((0.3 * q @ k.mT) + bias).softmax(-1) @ v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(out, expected)
    leaves = [q, k, v, *([bias] if learns else [])]
    for pair in zip(*(torch.autograd.grad(o.sin().sum(), leaves) for o in (out, expected)), strict=True):
        torch.testing.assert_close(*pair)


def test_dropout_drops_all_or_nothing():
    q, k, v = (torch.randn(1, 1, 4, 8) for _ in range(3))
    assert not attention(q, k, v, dropout_p=1.0).any()
    torch.testing.assert_close(attention(q, k, v), F.scaled_dot_product_attention(q, k, v).flatten(1, 2))
