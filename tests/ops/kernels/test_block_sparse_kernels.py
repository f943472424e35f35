"""Attention in groups of tokens by kernels, against its torch code in float64."""

import pytest
import torch
from kernels import (
    DEVICE,
    DTYPES,
    TOLERANCES,
    check,
    check_compiles,
    check_exports,
    check_operator,
    check_second_derivatives,
    close,
    laid_out,
    random,
)
from torch import nn

from visionattn.mixers import (
    BiLevelRoutingAttention,
    CrossShapedWindowAttention,
    FeatureSpaceLocalAttention,
    HaloAttention,
    LocallyGroupedAttention,
    SpatialWindowAttention,
    WindowAttention,
)
from visionattn.ops import (
    Windows,
    balanced_bisection,
    block_sparse_attention,
    cluster_attention,
    explain,
    halo_attention,
    stripe_attention,
    use_backend,
    window_attention,
)
from visionattn.ops.triton import block_sparse
from visionattn.ops.triton.halo_attention import halo_forward

FLOAT32 = torch.float32


def rows(batch, tokens, heads, dim, dtype=FLOAT32):
    return random(batch, tokens, 3, heads, dim, dtype=dtype)


def routed(batch, groups, chosen):
    torch.manual_seed(0)
    return torch.rand(batch, groups, groups).topk(chosen).indices.to(rows(1, 1, 1, 1).device)


@DTYPES
def test_windows_with_all_there_is(dtype):
    # A shift, padding at both sides that all see, a bias; heads of a width that is no power of two.
    bias, fill = random(2, 12, 12, seed=1), random(2, 2, 24, seed=2, dtype=dtype)
    windows = Windows((7, 5), (4, 3), (2, 1))
    check(block_sparse_attention, rows(1, 35, 2, 24, dtype), windows, bias=bias, pad_kv=fill, repeat=True)


@pytest.mark.parametrize(
    ("size", "window", "shift"),
    [
        ((7, 13), (7, 7), (0, 0)),
        ((14, 7), (7, 7), (3, 0)),
        ((3, 61), (2, 16), (0, 5)),
        ((1, 49), (3, 14), (1, 7)),
        ((1, 1), (2, 2), (1, 1)),
    ],
    ids=str,
)
def test_sizes_of_maps_and_windows(size, window, shift):
    check(block_sparse_attention, rows(1, size[0] * size[1], 1, 20), Windows(size, window, shift), scale=0.3)


def test_windows_of_196():
    check(block_sparse_attention, rows(1, 196, 1, 32), Windows((14, 14), (14, 14), (7, 0)), grad=False)


@pytest.mark.parametrize("dtype", [torch.float16, FLOAT32], ids=str)
def test_windows_larger_than_a_tile(dtype):
    windows, bias, fill = Windows((9, 7), (9, 8), (4, 0)), random(1, 72, 72, seed=1), random(2, 1, 16, seed=2)
    qkv = rows(1, 63, 1, 16, dtype)
    # What backward subtracts comes from the rounded result: no better for a bias in float32.
    check(block_sparse_attention, qkv, windows, bias=bias, pad_kv=fill.to(dtype), tolerance=TOLERANCES[dtype])


@pytest.mark.parametrize("dim", [3, 40, 128])
def test_widths_of_heads(dim):
    check(block_sparse_attention, rows(2, 4, 1, dim), Windows((2, 2), (1, 4), (0, 0)))


def test_autocast_is_heeded():
    qkv, bias, fill = rows(1, 6, 1, 16), random(1, 6, 6, seed=1), random(2, 1, 16, seed=2)
    found = {}
    for backend in ("triton", "torch"):
        leaf = qkv.detach().requires_grad_()
        with torch.autocast(DEVICE, torch.bfloat16):
            out = block_sparse_attention(leaf, Windows((2, 3), (2, 3)), bias=bias, pad_kv=fill, backend=backend)
        found[backend] = out, *torch.autograd.grad(out.float().sin().sum(), leaf)
    for name, actual, expected in zip(("result", "gradient"), *found.values(), strict=True):
        assert actual.dtype == expected.dtype
        close(name, actual, expected, TOLERANCES[torch.bfloat16])
    assert found["triton"][0].dtype == torch.bfloat16


@DTYPES
@pytest.mark.parametrize("overlap", [0, 1, 3])
def test_clusters(overlap, dtype):
    # 13 tokens in 4 clusters of 4 slots.
    order = balanced_bisection(random(1, 2, 13, 16, seed=1), cluster_size=4)
    qkv = rows(1, 13, 2, 16, dtype)
    check(cluster_attention, qkv, order, overlap=overlap, scale=0.7, repeat=True)


def test_clusters_of_one_image_and_of_two():
    order = balanced_bisection(random(4, 1, 5, 16, seed=1), cluster_size=6)
    check(cluster_attention, rows(4, 5, 1, 16), order, overlap=2)
    check(cluster_attention, rows(4, 5, 1, 16), order, overlap=9, pair_images=True)
    spare = torch.cat((order, torch.full_like(order[..., :1], 5)), dim=-1)
    check(cluster_attention, rows(4, 5, 1, 16), spare, overlap=2, pair_images=True)


def test_values_alone_have_gradients_too():
    order = balanced_bisection(random(1, 1, 9, 16, seed=1), cluster_size=5)
    grads = []
    for backend in ("torch", "triton"):
        qkv = rows(1, 9, 1, 16).requires_grad_()
        _, values = cluster_attention(qkv, order, overlap=1, backend=backend)
        grads.append(torch.autograd.grad(values.sin().sum(), qkv)[0])
    close("gradient", *grads)


def test_a_table_of_all_heads_and_images():
    order = torch.tensor([5, 0, 3, 1, 4, 2]).view(1, 1, 2, 3)
    bias = random(2, 3, 5, seed=1)
    check(block_sparse_attention, rows(2, 6, 2, 16), order.to(bias.device), overlap=2, bias=bias)


@DTYPES
@pytest.mark.parametrize("stripe", [(None, 2), (2, None), (None, None)], ids=str)
def test_stripes(stripe, dtype):
    # CSwin: stripes that do not divide the map.
    qkv = rows(2, 15, 2, 24, dtype).view(2, 5, 3, 3, 48)
    weight, bias = random(48, 1, 3, 3, seed=1, dtype=dtype), random(48, seed=2, dtype=dtype)
    check(stripe_attention, qkv, weight, bias, num_heads=2, stripe=stripe)


def halos(shape, block, halo, dtype=FLOAT32):
    q, kv = random(*shape, dtype=dtype), random(*shape[:4], 2, shape[4], seed=1, dtype=dtype)
    tables = [random(2 * (block + 2 * halo) - 1, shape[4], seed=seed, dtype=dtype) / 4 for seed in (2, 3)]
    return (q, *kv.unbind(4), *tables), {"block_size": block, "halo_size": halo}


@DTYPES
def test_halos(dtype):
    # Blocks at all borders, two of them incomplete; keys and values lie side by side.
    tensors, settings = halos((1, 4, 3, 2, 16), 2, 1, dtype)
    check(halo_attention, *tensors, **settings, tolerance=4 * TOLERANCES[dtype])


@pytest.mark.parametrize(("size", "block", "halo"), [((3, 2), 1, 2), ((2, 5), 3, 0), ((2, 3), 4, 2)], ids=str)
def test_sizes_of_blocks_and_halos(size, block, halo):
    # A halo beyond the next block; none; a map smaller than a block.
    tensors, settings = halos((1, *size, 1, 20), block, halo)
    check(halo_attention, *tensors, **settings, tolerance=4e-6)


@DTYPES
def test_routed_regions(dtype):
    # BiFormer: regions at two sides are padded, and what pads them counts.
    qkv, fill, bias = rows(1, 15, 1, 16, dtype), random(2, 1, 16, seed=1, dtype=dtype), random(1, 6, 12, seed=2)
    windows, chosen = Windows((3, 5), (2, 3)), routed(1, 4, 2)
    settings = {"block_table": chosen, "pad_kv": fill, "bias": bias}
    check(block_sparse_attention, qkv, windows, repeat=True, tolerance=TOLERANCES[dtype], **settings)


def test_regions_that_all_see_or_none():
    chosen = torch.tensor([[[1, 0], [0, 1], [1, 0]], [[2, 1], [2, 0], [0, 2]]]).to(routed(1, 1, 1).device)
    check(block_sparse_attention, rows(2, 6, 1, 16), Windows((2, 3), (2, 1)), block_table=chosen)


def test_routed_tables():
    order = balanced_bisection(random(1, 2, 13, 16, seed=1), cluster_size=4)
    check(block_sparse_attention, rows(1, 13, 2, 16), order, block_table=routed(1, 4, 3))


def test_a_query_that_sees_no_key_is_zero_and_learns_nothing():
    order = torch.tensor([0, 1, 2, 9, 9, 9]).view(1, 1, 2, 3)
    with use_backend("triton"):
        qkv = rows(1, 3, 1, 16).requires_grad_()
        table = torch.tensor([[[1], [0]]], device=qkv.device)
        out = block_sparse_attention(qkv, order.to(qkv.device), block_table=table)
        (grad,) = torch.autograd.grad(out.sin().sum(), qkv)
    assert not out.any() and not grad.any()


@pytest.mark.parametrize("layout", ["sliced", "expanded", "by head"])
def test_rows_and_gradients_are_read_where_they_lie(layout):
    windows = Windows((4, 4), (2, 4), (1, 2))
    qkv = rows(2, 16, 2, 8)
    if layout == "sliced":
        qkv = laid_out(qkv, "sliced")
    elif layout == "by head":  # (3, B, heads, N, d) in memory
        qkv = qkv.permute(2, 0, 3, 1, 4).contiguous().permute(1, 3, 0, 2, 4)
    results = {}
    for backend in ("triton", "torch"):
        leaf = qkv.detach().requires_grad_()
        out = block_sparse_attention(
            leaf[:1].expand(2, -1, -1, -1, -1) if layout == "expanded" else leaf, windows, backend=backend
        )
        # Gradients that no dense tensor holds: of a sum, and of a slice that lies otherwise.
        loss = out.sum() if layout == "expanded" else out.permute(0, 3, 2, 1)[:, 2:].square().sum()
        results[backend] = out.detach(), torch.autograd.grad(loss, leaf)[0]
    for name, *pair in zip(("out", "gradient"), *results.values(), strict=True):
        close(name, *pair, tolerance=2e-6)


def test_operators_compilers_and_exporters():
    windows, bias, fill = Windows((3, 5), (2, 3), (1, 0)), random(2, 6, 6, seed=1), random(2, 2, 16, seed=2)
    qkv = rows(1, 15, 2, 16)
    sizes = [3, 5, 2, 3, 1, 0]
    leaves = [x.clone().requires_grad_() for x in (qkv, bias, fill)]
    check_operator(block_sparse.block_sparse_forward, leaves[0], None, None, *leaves[1:], sizes, 0, 0.25, False)
    order = balanced_bisection(random(1, 2, 15, 16), cluster_size=8)
    check_operator(block_sparse.block_sparse_forward, leaves[0], order, None, None, None, [], 2, 0.25, True)
    check_compiles(
        lambda qkv, bias, pad_kv: block_sparse_attention(qkv, windows, bias=bias, pad_kv=pad_kv) + 1, qkv, bias, fill
    )
    check_compiles(lambda qkv: cluster_attention(qkv, order, overlap=2)[0].sin(), qkv)
    check_exports(lambda qkv: block_sparse_attention(qkv, windows) + 1, qkv)
    check_exports(lambda qkv: cluster_attention(qkv, order)[0] + 1, qkv)


def test_halo_operators_compilers_and_exporters():
    tensors, settings = halos((1, 3, 2, 1, 16), 2, 1)
    check_operator(halo_forward, *(x.clone().requires_grad_() for x in tensors), *settings.values())
    check_compiles(lambda *x: halo_attention(*x, **settings) + 1, *tensors)
    check_exports(lambda *x: halo_attention(*x, **settings) + 1, *tensors)
    check_second_derivatives(halo_attention, *tensors, **settings)


MIXERS = {
    "swin": lambda: WindowAttention(32, num_heads=2, window_size=4),
    "swin shifted": lambda: WindowAttention(32, num_heads=2, window_size=4, shift_size=2),
    "swin detector": lambda: WindowAttention(32, num_heads=2, window_size=(8, 3), shift_size=(3, 1), fit_window=False),
    "swin exact": lambda: WindowAttention(32, num_heads=2, window_size=4, shift_size=(1, 2), pad_mask="exact"),
    "swin without bias": lambda: WindowAttention(32, num_heads=2, window_size=4, rel_pos=False, qkv_bias=False),
    **{
        f"twins {policy}": lambda policy=policy: LocallyGroupedAttention(
            32, num_heads=2, window_size=4, pad_mask=policy
        )
        for policy in LocallyGroupedAttention.pad_masks
    },
    "davit": lambda: SpatialWindowAttention(32, num_heads=2, window_size=4),
    "davit exact": lambda: SpatialWindowAttention(32, num_heads=2, window_size=4, pad_mask="exact"),
    "biformer": lambda: BiLevelRoutingAttention(32, num_heads=2, n_win=4, topk=3),
    "biformer nchw": lambda: BiLevelRoutingAttention(32, num_heads=2, n_win=3, topk=2, form="nchw", lepe=0),
    "cswin": lambda: CrossShapedWindowAttention(32, num_heads=4, split_size=2),
    "halo": lambda: HaloAttention(32, num_heads=2, block_size=4, halo_size=1),
    "boat": lambda: FeatureSpaceLocalAttention(32, num_heads=2, cluster_size=10, overlap=3),
    "boat legacy": lambda: FeatureSpaceLocalAttention(32, num_heads=2, cluster_size=35, overlap=3, legacy=True),
}


@pytest.mark.parametrize("name", MIXERS)
def test_whole_mixers(name):
    torch.manual_seed(0)
    mixer = MIXERS[name]().to(random(1).device)
    for bias in (module.bias for module in mixer.modules() if isinstance(module, nn.Linear)):
        if bias is not None:  # What padding is made of.
            nn.init.normal_(bias)
    results = {}
    for backend in ("triton", "torch"):
        x = random(2 if "boat" in name else 1, 7, 5, 32).requires_grad_()
        with use_backend(backend):
            out = mixer(x)
            grads = torch.autograd.grad(out.sin().sum(), [x, *mixer.parameters()])
        results[backend] = out.detach(), *grads
    names = ["result", "gradient of the map", *(f"gradient of {name}" for name, _ in mixer.named_parameters())]
    for name, actual, expected in zip(names, *results.values(), strict=True):
        close(name, actual, expected, tolerance=1e-5)


def test_second_derivatives():
    bias, pad_kv = random(2, 6, 6, seed=1), random(2, 2, 16, seed=2)
    windows = Windows((3, 5), (2, 3), (1, 0))
    check_second_derivatives(block_sparse_attention, rows(1, 15, 2, 16), windows, bias=bias, pad_kv=pad_kv)
    order = balanced_bisection(random(1, 2, 9, 16, seed=1), cluster_size=5)
    check_second_derivatives(cluster_attention, rows(1, 9, 2, 16), order, overlap=2)


@pytest.mark.parametrize("window", [(4, 4), (2, 16)], ids=["alone", "tiles"])
@pytest.mark.parametrize("size", [1e3, 1e4])
def test_gradients_of_large_scores(size, window):
    qkv, bias = size * rows(1, 64, 1, 16), random(1, *[window[0] * window[1]] * 2, seed=1)
    windows = Windows((4, 16), window) if window == (2, 16) else Windows((8, 8), window)
    grads = []
    for backend, dtype in (("triton", FLOAT32), ("torch", torch.float64)):
        leaf = qkv.to(dtype).requires_grad_()
        out = block_sparse_attention(leaf, windows, bias=bias.to(dtype), backend=backend)
        grads.append(torch.autograd.grad((out * torch.linspace(0, 1, 64).view(64, 1, 1)).sum(), leaf)[0])
    close("gradient", *grads, tolerance=1e-4)


def test_padding_of_another_dtype_is_taken_in_that_of_the_map():
    windows, qkv = Windows((3, 5), (2, 3)), rows(1, 15, 1, 16, torch.bfloat16)
    pad_kv = random(2, 1, 16, seed=2)
    results = {}
    for backend in ("triton", "torch"):
        leaf = pad_kv.clone().requires_grad_()
        out = block_sparse_attention(qkv, windows, pad_kv=leaf, backend=backend)
        results[backend] = out, torch.autograd.grad(out.float().sin().sum(), leaf)[0]
        assert (out.dtype, results[backend][1].dtype) == (torch.bfloat16, FLOAT32)
    for name, *pair in zip(("result", "gradient"), *results.values(), strict=True):
        close(name, *pair, tolerance=2e-2)


def test_paired_images_copy_nothing_from_the_host(monkeypatch):
    # Which CUDA graphs cannot capture.
    order = balanced_bisection(random(4, 1, 5, 16, seed=1), cluster_size=6)
    qkv = rows(4, 5, 1, 16)
    monkeypatch.setattr(torch, "tensor", None)
    monkeypatch.setattr(torch, "as_tensor", None)
    cluster_attention(qkv, order, overlap=2, pair_images=True, backend="triton")


def test_mixers_compile():
    mixer = WindowAttention(16, num_heads=1, window_size=2, shift_size=1).to(random(1).device)
    check_compiles(mixer, random(1, 3, 4, 16))


def test_what_kernels_do_not_take_is_said():
    def reason(op, *args, **kwargs):
        return explain(op, *args, backend="triton", **kwargs).reason.removeprefix("asked for triton, but ")

    x, linear, settings = random(1, 2, 2, 256), nn.Identity(), {"num_heads": 1, "window": (2, 2)}
    assert reason(window_attention, x, linear, linear, **settings) == "heads are wider than 128"
    assert reason(window_attention, x[..., :4], linear, linear, **settings, dropout_p=0.1) == (
        "attention weights are dropped"
    )
    order = torch.arange(4).view(1, 1, 2, 2)
    assert reason(cluster_attention, rows(1, 4, 1, 8), order, dropout_p=0.1) == "attention weights are dropped"
    assert reason(cluster_attention, rows(1, 4, 1, 129), order) == "heads are wider than 128"
    assert reason(block_sparse_attention, rows(1, 4, 8, 2).mT, order) == "the numbers of a head do not lie side by side"
    with pytest.raises(ValueError, match="heads are wider than 128"):
        block_sparse_attention(rows(1, 4, 1, 129), order, backend="triton")


@pytest.mark.parametrize("mask_padding", [False, True])
def test_maps_that_are_projected_already(mask_padding):
    x, settings = random(1, 3, 5, 3 * 64), {"num_heads": 1, "window": (2, 3), "mask_padding": mask_padding}
    assert explain(window_attention, x, None, None, **settings, backend="triton").backend == "triton"
    check(window_attention, x, None, None, **settings)
    wide = explain(window_attention, random(1, 2, 2, 3 * 129), None, None, **settings, backend="triton")
    assert wide.reason == "asked for triton, but heads are wider than 128"


def test_wide_heads_of_a_projection_are_refused_by_name():
    # What only the projection knows.
    with pytest.raises(ValueError, match="heads are at most 128 wide in kernels, got 200"):
        window_attention(
            random(1, 2, 2, 8), nn.Linear(8, 600), nn.Identity(), num_heads=1, window=(2, 2), backend="triton"
        )


@pytest.mark.parametrize(("precision", "expected"), [("ieee", "ieee"), ("none", "ieee"), ("tf32", "tf32")], ids=str)
def test_float32_is_multiplied_as_the_user_says(monkeypatch, precision, expected):
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        torch.backends.cuda.matmul.fp32_precision = precision
        assert block_sparse._precision(FLOAT32) == expected
        assert block_sparse._precision(torch.float16) == "ieee"
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
