"""Kernels of balanced bisection against its torch code and an official order, where no two tokens nearly tie."""

import pytest
import torch
from kernels import DEVICE, check_compiles, check_exports, check_operator, random

from visionattn.mixers import FeatureSpaceLocalAttention
from visionattn.ops import balanced_bisection, explain, use_backend
from visionattn.ops.triton.balanced_bisection import bisected_tokens
from visionattn.testing.fixtures import load, relative_error


@pytest.mark.parametrize(
    ("tokens", "width", "size", "iterations"),
    [(28, 8, 7, 2), (28, 8, 14, 0), (27, 12, 7, 1), (75, 33, 38, 2), (1, 8, 2, 2), (9, 8, 9, 2)],
)
def test_order(tokens, width, size, iterations):
    q = random(1, tokens, 3, 2, width, seed=tokens)[:, :, 0].transpose(1, 2)  # as it lies in a projection
    orders = [balanced_bisection(q, cluster_size=size, iterations=iterations, backend=b) for b in ("triton", "torch")]
    assert torch.equal(*orders)


def test_order_is_the_official_one():
    golden = load("boat_swin_fsla_module_1x196x64_eval")
    mixer = FeatureSpaceLocalAttention(64, num_heads=2)
    mixer.load_state_dict(golden.state_dict)
    q = mixer.qkv(golden.input).view(1, 196, 3, 2, 32)[:, :, 0].transpose(1, 2)
    order = balanced_bisection(q.to(DEVICE), cluster_size=49, backend="triton")
    assert torch.equal(order.flatten(2).cpu(), golden.arrays["aux_perm"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_compared_in_float32(dtype):
    q = random(1, 2, 27, 16, dtype=dtype)
    expected = balanced_bisection(q.float(), cluster_size=7, backend="torch")
    assert torch.equal(balanced_bisection(q, cluster_size=7, backend="triton"), expected)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_ties_keep_their_order(value):
    order = balanced_bisection(random(1, 2, 27, 8) * 0 + value, cluster_size=7, backend="triton").flatten(2)
    for some in order[0]:
        assert torch.equal(some[some < 27], torch.arange(27, device=DEVICE))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30, -0.0])
def test_every_token_has_one_slot(value):
    q = random(1, 2, 27, 8)
    q[:, 0, 7:9] = value
    order = balanced_bisection(q, cluster_size=7, backend="triton").flatten(2)
    assert torch.equal(order.sort().values, torch.arange(order.size(2), device=DEVICE).expand(1, 2, -1))


def test_operator_and_compilers():
    q = random(1, 2, 11, 8)
    for levels in (0, 2):
        check_operator(bisected_tokens, q, levels, 1, 10.0)
    check_compiles(
        lambda q: q.sum(3, keepdim=True) + balanced_bisection(q, cluster_size=3).flatten(2)[:, :, :1, None], q
    )
    check_exports(lambda q: balanced_bisection(q, cluster_size=3), q)


def test_what_kernels_do_not_take_is_said():
    def reason(*shape, strided=False):
        q = random(*shape)
        return explain(balanced_bisection, q.mT if strided else q, cluster_size=49, backend="triton").reason

    assert reason(1, 1, 60, 8) == "asked for"
    assert "wider than 128" in reason(1, 1, 60, 129)
    assert "side by side" in reason(1, 1, 60, 8, strided=True)
    assert "more than 8192 tokens" in reason(1, 1, 8193, 2)


def test_the_mixer():
    torch.manual_seed(0)
    mixer = FeatureSpaceLocalAttention(16, num_heads=2, cluster_size=8, overlap=3).to(DEVICE)
    x = random(1, 5, 3, 16).requires_grad_()
    results = []
    for backend in ("triton", "torch"):
        with use_backend(backend):
            out = mixer(x)
            results.append([out, *torch.autograd.grad(out.square().sum(), (x, *mixer.parameters()))])
    assert all(relative_error(*pair) < 1e-5 for pair in zip(*results, strict=True))
