"""Balanced bisection: who comes where, ties, empty slots, precision, and what must not depend on the order."""

import pytest
import torch

from visionattn.ops import balanced_bisection
from visionattn.reference.boat import naive_order


def tokens(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


@pytest.mark.parametrize("iterations", [0, 1, 2])
@pytest.mark.parametrize(("size", "levels"), [(49, 0), (49, 2), (7, 4), (6, 5)], ids=str)
def test_order_is_the_official_one(size, levels, iterations):
    q = tokens(2, 3, size << levels, 8, dtype=torch.float64)
    order = balanced_bisection(q, cluster_size=size, iterations=iterations, temperature=30.0)
    assert order.shape == (2, 3, 1 << levels, size)
    assert torch.equal(order.flatten(2), naive_order(q, size, iterations, 30.0))


@pytest.mark.parametrize("size", [49, 7, 2])
@pytest.mark.parametrize("number", [1, 5, 48, 50, 97, 150, 196, 441])
def test_every_token_has_one_slot(number, size):
    order = balanced_bisection(tokens(2, 2, number, 8), cluster_size=size)
    clusters, slots = order.shape[2:]
    assert slots <= size and clusters * slots - number < clusters
    assert torch.equal(order.flatten(2).sort().values, torch.arange(clusters * slots).expand(2, 2, -1))
    empty = order >= number
    assert not empty[:, :, ::2, 1:].any() and not empty[:, :, 1::2, :-1].any()
    assert empty.any() == (clusters * slots > number)


@pytest.mark.parametrize("number", [40, 43])
def test_images_and_heads_do_not_meet(number):
    q = tokens(4, 3, number, 8)
    order = balanced_bisection(q, cluster_size=5)
    images, heads = torch.tensor([2, 0, 3, 1]), torch.tensor([1, 2, 0])
    assert torch.equal(balanced_bisection(q[images][:, heads], cluster_size=5), order[images][:, heads])
    assert torch.equal(balanced_bisection(q[:1], cluster_size=5), order[:1])
    assert torch.equal(balanced_bisection(q, cluster_size=5), order)


@pytest.mark.parametrize("number", [40, 43])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_ties_keep_their_order(number, value):
    order = balanced_bisection(torch.full((1, 1, number, 8), value), cluster_size=5).flatten()
    assert torch.equal(order[order < number], torch.arange(number))


def test_tokens_opposite_to_a_centroid():
    q = torch.zeros(1, 1, 8, 3)
    q[:, :, :4, 0], q[:, :, 4:, 0] = 1, -1
    order = balanced_bisection(q, cluster_size=4)
    assert order.flatten().tolist() == [4, 5, 6, 7, 0, 1, 2, 3]
    assert torch.equal(order.flatten(2), naive_order(q, 4))


@pytest.mark.parametrize("number", [40, 43])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_overflow_leaves_every_token_a_slot(number, value):
    q = tokens(1, 2, number, 8)
    q[:, 0, 7] = value
    order = balanced_bisection(q, cluster_size=5).flatten(2)
    assert torch.equal(order.sort().values, torch.arange(order.size(2)).expand(1, 2, -1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_clusters_are_found_in_float32(dtype):
    q = tokens(2, 2, 196, 16).to(dtype)
    order = balanced_bisection(q.float(), cluster_size=49)
    assert torch.equal(balanced_bisection(q, cluster_size=49), order)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(balanced_bisection(q, cluster_size=49), order)
        assert torch.equal(balanced_bisection(q.float(), cluster_size=49), order)


def test_nothing_is_kept_for_gradients():
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda tensor: tensor):
        balanced_bisection(tokens(1, 2, 43, 8).requires_grad_(), cluster_size=5)
    assert not kept
