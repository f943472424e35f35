"""Kernels of tokens' products against their torch code, and DaViT's channel attention by them."""

import pytest
import torch
from kernels import DEVICE, DTYPES, TOLERANCES, check, check_compiles, check_operator, close, laid_out, random

from visionattn.mixers import ChannelAttention
from visionattn.ops import explain, use_backend
from visionattn.ops.token_products import mixed_tokens, token_products
from visionattn.ops.triton.token_products import mixture_of_tokens, sums_of_products

SHAPES = [(2, 49, 24), (1, 600, 8), (3, 5, 130)]


@DTYPES
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sums(shape, dtype):
    x, y = (random(*shape, dtype=dtype, seed=seed) for seed in (0, 1))
    for args in ((x,), (x, y)):
        # The sums are float32 whatever the tokens are; their gradients, and the torch code's sums, are rounded.
        check(token_products, *args, grad=False, tolerance=1e-6)
        check(token_products, *args, tolerance=3 * TOLERANCES[dtype])
    check(token_products, laid_out(x, "sliced"), y, grad=False, tolerance=1e-6)


@DTYPES
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_mixtures(shape, dtype):
    square = (shape[0], shape[2], shape[2])
    x, a, y, b = (random(*size, dtype=dtype, seed=seed) for seed, size in enumerate((shape, square) * 2))
    bias = random(shape[0], 1, shape[2], dtype=dtype, seed=4)
    check(mixed_tokens, x, a, y, b, bias, grad=False, tolerance=TOLERANCES[dtype])
    check(mixed_tokens, x, a.mT, laid_out(y, "sliced"), b, bias, grad=False, tolerance=TOLERANCES[dtype])


def test_operators():
    x, y = (random(2, 5, 12, seed=seed).requires_grad_() for seed in (0, 1))
    check_operator(sums_of_products, x, y)
    check_operator(sums_of_products, x, None)
    matrix, bias = random(2, 12, 12), random(2, 1, 12)
    check_operator(mixture_of_tokens, x.detach(), matrix, y.detach(), matrix, bias)


def test_what_kernels_do_not_take_is_said():
    x = random(1, 8, 8)
    assert explain(token_products, x, backend="triton").reason == "asked for"
    assert "do not lie together" in explain(token_products, x, x.mT, backend="triton").reason
    assert "more than 1024 channels" in explain(token_products, random(1, 2, 1025), backend="triton").reason


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_mixer(dtype):
    torch.manual_seed(0)
    mixer = ChannelAttention(24, num_heads=3, moments=True).to(DEVICE, dtype)
    x = random(2, 7, 9, 24, dtype=dtype).requires_grad_()

    def run(backend):
        with use_backend(backend):
            out = mixer(x)
            grads = torch.autograd.grad(out.float().square().sum(), (x, *mixer.parameters()))
        return [out.detach(), *grads]

    names = ("result", "x", *dict(mixer.named_parameters()))
    for name, kernels, plain in zip(names, run("triton"), run("torch"), strict=True):
        close(name, kernels, plain, 2e-2 if dtype == torch.bfloat16 else 5e-6)


def test_compiled_mixer():
    torch.manual_seed(0)
    mixer = ChannelAttention(8, num_heads=2, moments=True).to(DEVICE)
    check_compiles(mixer, random(2, 3, 5, 8))
