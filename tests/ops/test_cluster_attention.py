"""Attention in clusters: each query against the very keys it may see, one by one."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from visionattn.ops import balanced_bisection, cluster_attention

SHAPES = [(1, 5, 3), (9, 5, 2), (10, 5, 2), (11, 4, 4), (13, 2, 1), (37, 5, 0), (40, 5, 5), (43, 6, 4)]


def operands(tokens, size, batch=2):
    torch.manual_seed(0)
    qkv = torch.randn(batch, tokens, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    return qkv, balanced_bisection(qkv[:, :, 0].transpose(1, 2), cluster_size=size)


def one_by_one(qkv, order, overlap, scale):
    rows = []
    for image, orders in zip(qkv, order.tolist(), strict=True):
        out = {}
        for head, clusters in enumerate(orders):
            filled = [[token for token in cluster if token < len(image)] for cluster in clusters]
            for number, cluster in enumerate(filled):
                seen = list(cluster)
                if len(filled) > 1 and overlap:
                    sibling = filled[number ^ 1]
                    seen += sibling[-overlap:] if number % 2 else sibling[:overlap]
                q, k, v = image[cluster, 0, head], image[seen, 1, head], image[seen, 2, head]
                for token, row in zip(cluster, (scale * q @ k.mT).softmax(-1) @ v, strict=True):
                    out[token, head] = row
        heads = range(len(orders))
        rows.append(torch.stack([torch.stack([out[token, head] for head in heads]) for token in range(len(image))]))
    return torch.stack(rows)


@pytest.mark.parametrize(("tokens", "size", "overlap"), SHAPES, ids=str)
def test_values_and_gradients(tokens, size, overlap):
    qkv, order = operands(tokens, size)
    grads = []
    out, values = cluster_attention(qkv, order, overlap=overlap, scale=0.7)
    expected = one_by_one(qkv, order, overlap, 0.7)
    torch.testing.assert_close(out, expected)
    assert torch.equal(values, qkv[:, :, 2])
    for result in (out + values.sin(), expected + qkv[:, :, 2].sin()):
        (grad,) = torch.autograd.grad((result * torch.linspace(-1, 1, result.numel()).view_as(result)).sum(), qkv)
        grads.append(grad)
    torch.testing.assert_close(*grads)


def test_second_derivatives():
    qkv, order = operands(11, 4)
    with sdpa_kernel(SDPBackend.MATH):
        assert torch.autograd.gradgradcheck(lambda x: cluster_attention(x, order, overlap=2), (qkv,), fast_mode=True)


def test_paired_images():
    qkv, order = operands(5, 5, batch=4)
    out, _ = cluster_attention(qkv, order, overlap=2, pair_images=True)
    # Two images of one cluster each are one image of two clusters.
    merged = qkv.reshape(2, 10, 3, 2, 4)
    expected = one_by_one(merged, torch.arange(10).view(1, 1, 2, 5).expand(2, 2, 2, 5), 2, 0.5)
    torch.testing.assert_close(out.reshape(expected.shape), expected)


def test_dropout():
    qkv, order = operands(37, 5)
    torch.testing.assert_close(cluster_attention(qkv, order, dropout_p=1.0)[0], torch.zeros(2, 37, 2, 4).double())
